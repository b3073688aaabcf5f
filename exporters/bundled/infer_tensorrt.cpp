// Classify one image with an engine that build_on_target.py made: the least that an application does.
//
//   g++ -std=c++17 infer_tensorrt.cpp -o infer -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lnvinfer -lcudart
//   ./infer ../engines/ADDRESS.engine ../labels.txt IMAGE
//
// IMAGE holds one image as the network takes it, without a header; manifest.json says how to make it:
//   python -c "import numpy as np; np.load('../parity/inputs.npy')[0].tofile('IMAGE')"
// Deserialising an engine runs code: load only engines that this device built.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace {

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", message);
    }
};

void check(bool fine, char const* what) {
    if (fine) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

std::vector<char> readFile(char const* path) {
    std::ifstream file(path, std::ios::binary);
    check(file.good(), path);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

int64_t count(nvinfer1::Dims const& shape) {
    int64_t product = 1;
    for (int i = 0; i < shape.nbDims; ++i) product *= shape.d[i];
    return product;
}

}  // namespace

int main(int argc, char** argv) {
    check(argc == 4, "usage: infer ENGINE LABELS IMAGE");
    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    std::vector<char> const plan = readFile(argv[1]);
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    check(engine != nullptr, "this device refuses the engine; build it here");
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());

    char const* input = nullptr;
    char const* output = nullptr;
    for (int32_t i = 0; i < engine->getNbIOTensors(); ++i) {
        char const* const name = engine->getIOTensorName(i);
        (engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT ? input : output) = name;
    }
    check(input != nullptr && output != nullptr, "the engine has an input and an output");
    bool const pixels = engine->getTensorDataType(input) == nvinfer1::DataType::kUINT8;
    nvinfer1::Dims shape = engine->getTensorShape(input);
    shape.d[0] = 1;
    check(context->setInputShape(input, shape), "setInputShape");
    std::vector<char> const image = readFile(argv[3]);
    check(image.size() == count(shape) * (pixels ? 1 : sizeof(float)), "IMAGE has another size than the engine's input");
    std::vector<float> answers(count(context->getTensorShape(output)));

    void* source = nullptr;
    void* answer = nullptr;
    cudaStream_t stream;
    check(cudaMalloc(&source, image.size()) == cudaSuccess, "cudaMalloc");
    check(cudaMalloc(&answer, answers.size() * sizeof(float)) == cudaSuccess, "cudaMalloc");
    check(cudaStreamCreate(&stream) == cudaSuccess, "cudaStreamCreate");
    check(context->setTensorAddress(input, source), "setTensorAddress");
    check(context->setTensorAddress(output, answer), "setTensorAddress");
    cudaMemcpyAsync(source, image.data(), image.size(), cudaMemcpyHostToDevice, stream);
    check(context->enqueueV3(stream), "enqueueV3");
    cudaMemcpyAsync(answers.data(), answer, answers.size() * sizeof(float), cudaMemcpyDeviceToHost, stream);
    check(cudaStreamSynchronize(stream) == cudaSuccess, "cudaStreamSynchronize");

    std::ifstream names(argv[2]);
    std::vector<std::string> labels;
    for (std::string line; std::getline(names, line);) labels.push_back(line);
    auto const best = std::max_element(answers.begin(), answers.end()) - answers.begin();
    check(best < static_cast<std::ptrdiff_t>(labels.size()), "labels.txt has fewer lines than the engine has outputs");
    std::printf("%s  %.4f\n", labels[best].c_str(), answers[best]);
    cudaStreamDestroy(stream);
    cudaFree(answer);
    cudaFree(source);
    return 0;
}
