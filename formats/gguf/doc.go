// Package gguf reads and writes GGUF files (versions 2 and 3), the container of llama.cpp.
package gguf
