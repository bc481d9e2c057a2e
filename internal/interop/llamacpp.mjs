// Asks llama.cpp, through node-llama-cpp's prebuilt binaries, about GGUF files.
//
//     node llamacpp.mjs REQUESTS.json RESPONSES.json
//
// REQUESTS:  [{"model": path, "vocabOnly": bool, "chunks": [[id, ...], ...], "first": n, "texts": [string, ...]}, ...]
// RESPONSES: [{"release", "metadata", "tokens": [[id, ...], ...], "nll": [number, ...], "top": [id, ...], "perplexity"}, ...]
//
// In each chunk the tokens at positions first, first+1, ... are scored: nll is the negative log-probability of each,
// top the token that was the most probable in its place. tokens holds texts tokenized, without BOS. metadata is without
// arrays. A file that llama.cpp cannot load has the response {"error": message}.

import fs from "node:fs/promises";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

function withoutArrays(metadata) {
    return Object.fromEntries(Object.entries(metadata)
        .filter(([, value]) => !Array.isArray(value))
        .map(([key, value]) => [key, value !== null && typeof value === "object" ? withoutArrays(value) : value]));
}

async function answer(llama, request) {
    const model = await llama.loadModel({modelPath: request.model, vocabOnly: request.vocabOnly === true});
    const response = {
        release: llama.llamaCppRelease.release,
        metadata: withoutArrays(model.fileInfo.metadata),
        tokens: (request.texts ?? []).map((text) => model.tokenize(text, false)),
        nll: [],
        top: []
    };
    if (request.chunks?.length > 0)
        await score(model, request, response);
    await model.dispose();
    return response;
}

async function score(model, request, response) {
    const length = Math.max(...request.chunks.map((chunk) => chunk.length));
    const context = await model.createContext({
        contextSize: length,
        batchSize: length,
        sequences: 1,
        threads: 1,
        // Keys and values in float32, so that what remains different is what the block types make different.
        flashAttention: false,
        experimentalKvCacheKeyType: "F32",
        experimentalKvCacheValueType: "F32"
    });
    const sequence = context.getSequence();
    for (const chunk of request.chunks) {
        await sequence.clearHistory();
        // The token at position i is judged by what the model says after position i−1, so the last one is not read. llama.cpp
        // has no place for a token that it reads without a prediction in Qwen3-VL's last layer, if images enter there.
        const input = chunk.slice(0, -1).map((token, i) => (i + 1 < request.first)
            ? token
            : [token, {generateNext: {
                // Without a temperature the selected token is the most probable one. (includeMax leaves it out.)
                logits: {filter: {tokens: [chunk[i + 1]], includeSelected: true}},
                totalLogitWeight: true
            }}]
        );
        const output = await sequence.controlledEvaluate(input);
        for (let i = Math.max(request.first - 1, 0); i + 1 < chunk.length; i++) {
            const {logits, totalLogitWeight} = output[i].next;
            const [top, max] = [...logits].reduce((a, b) => a[1] >= b[1] ? a : b);
            response.nll.push(max + Math.log(totalLogitWeight) - logits.get(chunk[i + 1]));
            response.top.push(top);
        }
    }
    response.perplexity = Math.exp(response.nll.reduce((sum, x) => sum + x, 0) / response.nll.length);
}

const [requestPath, responsePath] = process.argv.slice(2);
const requests = JSON.parse(await fs.readFile(requestPath, "utf8"));

const llama = await getLlama({
    gpu: false,
    build: "never", // neither compiles nor downloads
    skipDownload: true,
    progressLogs: false,
    maxThreads: 1, // The models are small, and llama.cpp's threads spin while others need the processor.
    logLevel: LlamaLogLevel.error
});
const responses = [];
for (const request of requests)
    responses.push(await answer(llama, request).catch((error) => ({error: String(error)})));
await fs.writeFile(responsePath, JSON.stringify(responses));
await llama.dispose();
