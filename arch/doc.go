// Package arch knows the model families: one file a family, and nothing else in the program names one.
//
// A Family says how a class of the transformers library becomes GGUF (Convert: hyperparameters under llama.cpp's keys,
// tensors with their parts in the checkpoint and what becomes of their rows), and how a model is computed from GGUF's
// metadata and tensors (Spec: branches of package model around a residual stream). Both agree with llama.cpp's converter
// (conversion/*.py) and graphs (src/models/*.cpp), which read the files that we write.
//
// What families share is beside them: layer.go (tensors of a layer), hyper.go (hyperparameters), rope.go, routing.go,
// window.go, mixture.go, sections.go, embedding.go, mamba2.go. A new family is a new file with an init that registers it.
package arch
