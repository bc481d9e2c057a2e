package model

import (
	"fmt"

	"github.com/llmq/llmq/formats/ggml"
)

// Source is where a model comes from. A Hugging Face folder and a GGUF file both appear as GGUF does: its metadata keys
// ("llama.block_count"), its tensor names ("blk.0.attn_q.weight") and its order of rows (llama's q and k interleaved).
type Source interface {
	// Name is the path, for messages.
	Name() string
	// Meta returns a metadata value; see gguf.KV for its Go types.
	Meta(key string) (any, bool)
	// Tensors lists all tensors in file order.
	Tensors() []ggml.Info
	// Tensor returns a tensor's data in its stored type. The data must not be written to, and is invalid after Release
	// or Close.
	Tensor(name string) (*ggml.Tensor, error)
	// Release says that a tensor's data is not needed for now, so that its pages need not stay resident.
	Release(t *ggml.Tensor)
	// ReadAhead says that a tensor's data will be needed soon. It does not wait for it.
	ReadAhead(name string)
	Close() error
}

// Rester is a Source of mapped files. Rest says that a tensor's data is not needed for a while: it stays valid, and the system may keep
// it, but its pages count no longer as this process's memory until they are read again.
type Rester interface{ Rest(t *ggml.Tensor) }

// RowSource is a Source that gives some rows of a tensor, those of its last dimension, without fetching all. Info is that of
// the tensor, or of the rows. A tensor that is put together of parts, as experts are, takes memory as rows are asked for.
type RowSource interface {
	Rows(name string, lo, hi int) (*ggml.Tensor, error)
}

// RowCopier is a RowSource of which some rows are no view of a file but made anew whenever they are asked for: decoded, or put
// together. Copies says so of rows [lo,hi) of a tensor. A layer does not hold such rows of experts: they are fetched when they
// are used (Linear.Weights). Where making them again costs more than time, as a download does, Copies says false.
type RowCopier interface {
	RowSource
	Copies(name string, lo, hi int) bool
}

// Rows are rows [Lo,Hi) of a tensor, those of its last dimension.
type Rows struct {
	Name   string
	Lo, Hi int
}

// Place is where some of a tensor lies: bytes [Lo,Hi) of a file.
type Place struct {
	File   string
	Lo, Hi int64
}

// Passing is a Source whose weights may come when they are needed, and go when nobody needs them any more.
type Passing interface {
	// Passes says whether they do.
	Passes() bool
	// Here says whether a tensor has come already.
	Here(name string) bool
	// Places are where a tensor lies in files of which bytes come when they are needed, with all before them in the file.
	Places(name string) []Place
	// Spend says that rows are not read again, and nobody holds them, so that they may go. Who reads them nevertheless has them come again.
	Spend(rows []Rows) error
	// Check says in the end whether all that was read is what it should be. Before nobody knows.
	Check() error
}

// A WeightsError says that weights as they were read are of no use: they are not finite, or make something that is not.
type WeightsError struct{ error }

func (e *WeightsError) Unwrap() error { return e.error }

// WeightsErrorf is fmt.Errorf for a WeightsError.
func WeightsErrorf(format string, args ...any) error {
	return &WeightsError{fmt.Errorf(format, args...)}
}

// PassingOf returns a source whose weights come and go as what it is; nil of another.
func PassingOf(src Source) Passing {
	if p, ok := src.(Passing); ok && p.Passes() {
		return p
	}
	return nil
}

// Unchanged is an error that names a file of the source that was written to since it was opened: what is read of it may be
// some of the old file and some of the new. A source that is not made of files has no Changed, and does not change.
func Unchanged(src Source) error {
	if files, ok := src.(interface{ Changed() error }); ok {
		return files.Changed()
	}
	return nil
}
