// Package interop holds our files and our figures against llama.cpp's: it loads what we write, and its tokens,
// log-probabilities and metadata agree with ours. llama.cpp comes from node-llama-cpp's prebuilt binaries, at the version
// that package-lock.json names. Its tests need the build tag interop and Node.js; make interop runs them.
package interop
