// Package safetensors reads checkpoints of one or more safetensors files through memory maps, and writes such files.
//
// A reader of our own is in charge of headers: it says which tensor is wrong, and knows the narrow floats. Headers with
// nothing in them that github.com/nlpodyssey/safetensors lacks are validated by that library too.
package safetensors
