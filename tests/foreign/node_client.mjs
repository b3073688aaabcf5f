// A client in another language that knows Punnet by its .proto files only.
//
//   node node_client.mjs ADDRESS TEACHER.onnx IMAGES.tar POOL.tar
//
// Uploads the three files, makes a pool, validates a compression, watches both jobs to their end, downloads the first
// artifact, and prints one JSON document.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const CHUNK_BYTES = 256 * 1024;
const FINAL = new Set(["JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"]);
const PROTO = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "proto");
const FILES = ["blob", "catalogue", "compression", "pool"].map((name) => `punnet/v1/${name}.proto`);

// Castagnoli's polynomial, bit-reversed.
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  return value >>> 0;
});

function crc32c(data) {
  let crc = 0xffffffff;
  for (const byte of data) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ byte) & 0xff];
  return (crc ^ 0xffffffff) >>> 0;
}

function sha256(data) {
  return createHash("sha256").update(data).digest("hex");
}

function call(client, method, request) {
  return new Promise((resolve, reject) =>
    client[method](request, (error, response) => (error ? reject(error) : resolve(response))),
  );
}

async function upload(blobs, file) {
  const data = readFileSync(file);
  const digest = { sha256: sha256(data), size: data.length };
  const { missing } = await call(blobs, "FindMissingBlobs", { digests: [digest] });
  if (missing.length === 0) return { sha256: digest.sha256, sent: 0 };
  await new Promise((resolve, reject) => {
    const stream = blobs.UploadBlob((error, response) => (error ? reject(error) : resolve(response)));
    for (let offset = 0; offset < data.length; offset += CHUNK_BYTES) {
      const part = data.subarray(offset, offset + CHUNK_BYTES);
      const finish = offset + part.length === data.length;
      const message = { offset, data: part, crc32c: crc32c(part), finish };
      stream.write(offset === 0 ? { digest, ...message } : message);
    }
    stream.end();
  });
  return { sha256: digest.sha256, sent: data.length };
}

async function download(blobs, artifact) {
  const parts = [];
  for await (const message of blobs.DownloadBlob({ sha256: artifact.sha256, offset: 0 })) {
    if (crc32c(message.data) !== message.crc32c) throw new Error(`chunk at ${message.offset} is damaged`);
    parts.push(message.data);
  }
  const data = Buffer.concat(parts);
  if (sha256(data) !== artifact.sha256) throw new Error(`${artifact.path} differs from its digest`);
  return data;
}

async function watch(jobs, id) {
  const seqs = [];
  let state = "";
  for await (const message of jobs.WatchJob({ id, after_seq: 0 })) {
    if (message.update !== "event") continue;
    seqs.push(Number(message.event.seq));
    if (message.event.event === "state") state = message.event.state;
  }
  if (!FINAL.has(state)) throw new Error(`the watch of ${id} ended in ${state}`);
  return { state, seqs };
}

async function refusal(jobs) {
  try {
    await call(jobs, "GetJob", { id: "0".repeat(32) });
  } catch (error) {
    return { code: error.code, details: error.details, has_status: error.metadata.get("grpc-status-details-bin").length };
  }
  throw new Error("an unknown job was found");
}

async function main(address, teacherFile, imagesFile, poolFile) {
  const options = { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true, includeDirs: [PROTO] };
  const { punnet } = grpc.loadPackageDefinition(protoLoader.loadSync(FILES, options));
  const credentials = grpc.credentials.createInsecure();
  const open = (service) => new punnet.v1[service](address, credentials);
  const blobs = open("BlobService");
  const jobs = open("CompressionService");
  const pools = open("PoolService");
  const students = open("CatalogueService");

  const [teacher, images, pool] = [await upload(blobs, teacherFile), await upload(blobs, imagesFile), await upload(blobs, poolFile)];
  const again = await upload(blobs, teacherFile);
  const made = await call(pools, "CreatePool", { name: "from-node", tar_sha256: [pool.sha256] });
  const ingest = await watch(jobs, made.job.id);
  const { pool: found } = await call(pools, "GetPool", { name: "from-node" });
  const request = {
    request_id: "node-1",
    teacher: { sha256: teacher.sha256, display_name: "teacher.onnx" },
    images: { tar: { sha256: images.sha256 } },
    pool: "from-node",
    validate_only: true,
  };
  const first = await call(jobs, "Compress", request);
  const second = await call(jobs, "Compress", request);
  const validation = await watch(jobs, first.job.id);
  const { job } = await call(jobs, "GetJob", { id: first.job.id });
  const inspection = job.artifacts.find((artifact) => artifact.path === "inspection.json");
  const document = {
    crc_check: crc32c(Buffer.from("123456789")),
    sent_again: again.sent,
    pool: { name: found.name, images: Number(found.images) },
    ingest,
    same_job: first.job.id === second.job.id,
    validation,
    job: { state: job.state, artifacts: job.artifacts.map((artifact) => artifact.path), error: job.error },
    inspection: inspection ? JSON.parse((await download(blobs, inspection)).toString()) : null,
    refusal: await refusal(jobs),
    version: (await call(jobs, "GetCapabilities", {})).version,
  };
  console.log(JSON.stringify(document));
  for (const client of [blobs, jobs, pools, students]) client.close();
}

await main(...process.argv.slice(2));
