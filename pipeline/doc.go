// Package pipeline turns a checkpoint into a GGUF file: the recipe says which type each tensor gets, the plan what the
// file will look like, and a run fills it in, one layer at a time.
package pipeline
