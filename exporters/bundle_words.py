"""The README of a bundle: what is in it and what to do with it, for the device at hand."""

from __future__ import annotations

from collections.abc import Sequence

from exporters.targets import Target

SHOWN_LABELS = 10

INSTALL = {
    "tensorrt": "JetPack brings TensorRT and its Python package on a Jetson. Elsewhere install `tensorrt-cu13` or "
    "`tensorrt-cu12` from NVIDIA's index. NumPy is the only other package. TensorRT 10 and 11 both work on servers; "
    "Jetson means TensorRT 10.",
    "tensorrt_rtx": "Install `tensorrt-rtx` and `numpy` with pip, and NVIDIA's driver. These engines run on RTX cards "
    "of desktops and laptops, not on Jetson and not on phones.",
    "onnxruntime": "Install `onnxruntime` and `numpy` with pip, or ONNX Runtime's package for your language.",
    "onnxruntime_mobile": "Add ONNX Runtime to the app: `com.microsoft.onnxruntime:onnxruntime-android` (Gradle) or "
    "`onnxruntime-objc` (CocoaPods). The `.ort` files also load in the smaller builds that leave ONNX out. "
    "No engine of TensorRT runs on a phone.",
}
BUILD = """## Build the engines

    python build_on_target.py

It checks every file, builds an engine of each variant, compares the parity images with the expected logits, times each
batch, and writes engines and `device-report.json` to the folder `engines`. `recommended` in the report is the fastest
variant that passed. An engine runs only with the builder's version, on the kind of device and for the batches that it
was built for: build again after an update. Engines are code: load only those that this device built.

`--help` lists the options. `--timing-cache DIR` makes later builds with TensorRT faster."""
PHONE = """## In the app

Android (Kotlin):

    val env = OrtEnvironment.getEnvironment()
    val session = env.createSession(modelBytes, OrtSession.SessionOptions())
    val input = OnnxTensor.createTensor(env, FloatBuffer.wrap(pixels), longArrayOf(1, channels, height, width))
    val logits = (session.run(mapOf("input" to input))[0].value as Array<FloatArray>)[0]

iOS (Swift):

    let session = try ORTSession(env: ORTEnv(loggingLevel: .warning), modelPath: path, sessionOptions: nil)
    let input = try ORTValue(tensorData: pixels, elementType: .float, shape: [1, channels, height, width])
    let outputs = try session.run(withInputs: ["input": input], outputNames: ["logits"], runOptions: nil)

No snippet was run on a phone here."""
OTHERS = {
    ".pte": """## The `.pte` file

It is for ExecuTorch instead of ONNX Runtime: `org.pytorch:executorch-android` (Gradle), or ExecuTorch's Swift package
for iOS. It takes and gives the same, and its expected logits are its own, by ExecuTorch on a computer.

    val module = Module.load(path)
    val input = Tensor.fromBlob(pixels, longArrayOf(1, channels, height, width))
    val logits = module.forward(EValue.from(input))[0].toTensor().dataAsFloatArray""",
    ".xml": """## The `.xml` files

They are for OpenVINO instead of ONNX Runtime, each with the `.bin` of its name (`pip install openvino`). They take and
give the same, and their expected logits are their own, computed in float32. By default OpenVINO computes in bfloat16
where the processor does: set `INFERENCE_PRECISION_HINT` to `f32` for these very logits.

    compiled = openvino.Core().compile_model("student-openvino-fp32.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = compiled([batch])[0]""",
}
CHECKED = {
    "tensorrt": "No engine of this kind was built or run where the bundle was made: the report of the device is the "
    "first that says anything of it.",
    "tensorrt_rtx": "Engines of this kind were built, not run, where the bundle was made: the report of the device is "
    "the first that says how fast and how exact they are.",
    "onnxruntime": "The expected logits are of these files, run by ONNX Runtime where the bundle was made.",
    "onnxruntime_mobile": "The expected logits are of these files, run by ONNX Runtime on a computer; nothing was "
    "measured on a phone.",
}


def readme(
    target: Target, files: Sequence[str], labels: Sequence[str], *, pixels: bool, output: str, batch: int | None
) -> str:
    """README.md in Markdown.

    Args:
        pixels: the files take pixels as they are.
        output: logits or probabilities.
        batch: the only one that the files take; None: any.
    """
    shown = ", ".join(labels[:SHOWN_LABELS]) + (", …" if len(labels) > SHOWN_LABELS else "")
    parts = [
        f"# For {target.device}\n",
        f"A classifier of {len(labels)} classes ({shown}).\n",
        _table(target, files),
        f"## Install\n\n{INSTALL[target.runtime]}\n",
    ]
    if target.has_engines:
        parts.append(BUILD + "\n")
    if target.runtime == "onnxruntime_mobile":
        parts.append(PHONE + "\n")
    parts += [f"{words}\n" for suffix, words in OTHERS.items() if any(name.endswith(suffix) for name in files)]
    images = "N" if batch is None else str(batch)
    taken = (
        f"uint8 [{images}, height, width, channels], pixels from 0 to 255 in RGB order"
        if pixels
        else f"float32 [{images}, channels, height, width], (pixel * scale - mean) / std with pixel from 0 to 255, the "
        "figures being those of `preprocessing` in `manifest.json`"
    )
    parts.append(
        f"## Feed it\n\nInput `input`: {taken}. Output `{output}`: [{images}, classes] in the order of `labels.txt`. "
        "`samples` shows it.\n"
    )
    parts.append(f"## What was checked\n\n{CHECKED[target.runtime]}\n")
    return "\n".join(parts)


def _table(target: Target, files: Sequence[str]) -> str:
    rows = [(name, "the network, the preferred file first" if name == files[0] else "the network") for name in files]
    if target.has_engines:
        rows.append(("build_on_target.py, exporters/", "builds, checks and times engines on the device"))
    rows += [
        ("samples/", "the least that an application does"),
        ("labels.txt", "names of the outputs, one a line"),
        ("parity/", "images, model inputs, and the logits that each file gives for them"),
        ("manifest.json", "preprocessing, labels, and the sha256 of every file"),
    ]
    return "| file | what it is |\n|---|---|\n" + "".join(f"| {name} | {what} |\n" for name, what in rows)
