// Package checkpoint reads the weights of a Hugging Face checkpoint folder by rows, in whatever format they are stored.
//
// A folder holds stored tensors: safetensors or torch pickles (torch.go). What a quantizer made of one weight, such as
// qweight, qzeros, scales and g_idx, is gathered into one logical tensor that has the weight's own name and shape; only
// the rows that are asked for are decoded, in float32 as llama.cpp's convert_hf_to_gguf.py decodes them. Formats are
// recognised by the parts that are there; quantization_config settles what those leave open. What is a plain tensor in a
// quantized checkpoint stays one.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/mmap"
)

// Info describes a logical tensor.
type Info struct {
	Name string
	// Type is that of Rows' bytes: F32, F16, BF16 or MXFP4.
	Type *ggml.Type
	// Shape is row-major, the longest stride first; empty for a scalar.
	Shape []int
	// File is the name of the file that holds the tensor, or its codes, for messages.
	File string
	// Format says how the tensor is stored, such as "gptq", 4 bits: "" for floats as they are, also in float64.
	Format string
}

// MXFP4 is the Format of weights that keep their blocks of four bits. Experts of gpt-oss in it are experts×out×in, where that
// model's plain ones are experts×in×out.
const MXFP4 = "mxfp4"

// NVFP4 is the Format of weights of four bits whose scales have a factor of the whole weight's: see Factors.
const NVFP4 = "nvfp4"

// LoRA is the Format of plain weights with an adapter merged into them.
const LoRA = "lora"

// maxJSONBytes is beyond any index or configuration: the largest index has some 20 MB.
const maxJSONBytes = 256 << 20

// Config is what the reader must know besides the folder's weights. The zero value does for plain ones.
type Config struct {
	// Quantization is the quantization_config of config.json; if it is empty, that of hf_quant_config.json is taken,
	// where there is one.
	Quantization json.RawMessage
	// LoRA is the folder of an adapter to merge into the weights; "" for none.
	LoRA string
	// Open maps a file of safetensors; nil means mmap.Open. Of a file that is not all there (mmap.OpenLazy), tensors come when their
	// rows are asked for; all must be plain floats.
	Open func(path string) (*mmap.Map, error)
}

// A FormatError reports that the input is not a valid checkpoint.
type FormatError string

func (e FormatError) Error() string { return "checkpoint: " + string(e) }

// An UnsupportedError reports that the input uses a valid but unimplemented feature.
type UnsupportedError string

func (e UnsupportedError) Error() string { return "checkpoint: " + string(e) }

func formatErrorf(format string, args ...any) error { return FormatError(fmt.Sprintf(format, args...)) }

func unsupportedf(format string, args ...any) error {
	return UnsupportedError(fmt.Sprintf(format, args...))
}

// unmarshal is json.Unmarshal, but that its errors speak of the file's members, not of Go's types.
func unmarshal(b []byte, v any) error {
	err := json.Unmarshal(b, v)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%sa JSON %s does not belong there", strings.TrimPrefix(wrong.Field+": ", ": "), wrong.Value)
	}
	return err
}

// Checkpoint is an open folder. Its methods but Close may be called from several goroutines.
type Checkpoint struct {
	names    []string // in the order of the files
	tensors  map[string]*logical
	warnings []string
	files    []file
}

// file is what stored tensors are views of: a torch file, or a set of safetensors files.
type file interface {
	// Changed is an error if the file was written to since it was opened.
	Changed() error
	Close() error
}

// logical is a logical tensor.
type logical struct {
	Info
	decoder
}

// decoder turns stored parts into rows.
type decoder interface {
	// rows returns rows lo to hi in the type of the tensor's Info.
	rows(lo, hi int) ([]byte, error)
	// spans lists the stored bytes that rows lo to hi are read from, and from which no others are, as far as they are
	// worth being released and read ahead.
	spans(lo, hi int) []span
}

// span is a piece of a map.
type span struct {
	pages
	data []byte
}

// pages can be told what becomes of parts of a mapped file.
type pages interface {
	Release([]byte)
	Rest([]byte)
	ReadAhead([]byte)
	Drop(...[]byte) error
	There([]byte) bool
	Place([]byte) (file string, lo, hi int64, ok bool)
}

// Open reads the headers of a folder's weights, but no weights.
func Open(dir string, cfg Config) (*Checkpoint, error) {
	parts, files, err := openFolder(dir, cfg.Open)
	if err != nil {
		return nil, err
	}
	c := &Checkpoint{tensors: make(map[string]*logical), files: files}
	if err := c.assemble(dir, parts, cfg); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Checkpoint) assemble(dir string, parts []*part, cfg Config) error {
	a, err := newAssembly(dir, parts, cfg.Quantization)
	if err != nil {
		return err
	}
	if err := a.run(); err != nil {
		return err
	}
	for _, t := range a.tensors {
		if _, ok := c.tensors[t.Name]; ok {
			return formatErrorf("%s: tensor %q is stored in two formats", t.File, t.Name)
		}
		c.names = append(c.names, t.Name)
		c.tensors[t.Name] = t
	}
	c.warnings = a.warnings
	if cfg.LoRA != "" {
		return c.merge(cfg.LoRA)
	}
	return nil
}

// Names lists the logical tensors in the order of the files.
func (c *Checkpoint) Names() []string { return slices.Clone(c.names) }

// Lookup describes a tensor.
func (c *Checkpoint) Lookup(name string) (Info, bool) {
	t, ok := c.tensors[name]
	if !ok {
		return Info{}, false
	}
	return t.Info, true
}

// Rows returns rows lo to hi of the tensor seen as a matrix whose rows are its last dimension, in the type of its Info: a
// view of the file where they are stored so, which must not be written to and is invalid after Close, else decoded.
func (c *Checkpoint) Rows(name string, lo, hi int) ([]byte, error) {
	t, ok := c.tensors[name]
	if !ok {
		return nil, fmt.Errorf("checkpoint: no tensor %q", name)
	}
	if n, _ := matrix(t.Shape); lo < 0 || lo > hi || hi > n {
		return nil, fmt.Errorf("checkpoint: %s: tensor %q: rows %d to %d of %d", t.File, name, lo, hi, n)
	}
	if lo == hi {
		return nil, nil
	}
	b, err := t.rows(lo, hi)
	if absent, ok := errors.AsType[*absentError](err); ok {
		return nil, fmt.Errorf("checkpoint: %s: tensor %q: %w", t.File, name, absent.error)
	}
	if err != nil {
		return nil, formatErrorf("%s: tensor %q: %v", t.File, name, err)
	}
	return b, nil
}

// View says whether Rows gives views of a file: not of what is decoded, or gathered. A name that is not there is none.
func (c *Checkpoint) View(name string) bool {
	t, ok := c.tensors[name]
	if !ok {
		return false
	}
	p, ok := t.decoder.(plain)
	return ok && p.part.strides == nil
}

// Release lets the kernel drop the pages that hold only these rows. Reading them again brings them back. A name that is
// not there is ignored.
func (c *Checkpoint) Release(name string, lo, hi int) {
	for _, s := range c.spans(name, lo, hi) {
		s.Release(s.data)
	}
}

// Rest takes the pages that hold only these rows out of the process's memory, but not out of the system's. A name that is not
// there is ignored.
func (c *Checkpoint) Rest(name string, lo, hi int) {
	for _, s := range c.spans(name, lo, hi) {
		s.Rest(s.data)
	}
}

// ReadAhead has the kernel read rows while the caller does other things. A name that is not there is ignored.
func (c *Checkpoint) ReadAhead(name string, lo, hi int) {
	for _, s := range c.spans(name, lo, hi) {
		s.ReadAhead(s.data)
	}
}

// Rows are rows [Lo,Hi) of a tensor.
type Rows struct {
	Name   string
	Lo, Hi int
}

// Drop says that nobody will read these rows again, so that what holds only them may go from a file that comes in parts.
func (c *Checkpoint) Drop(rows []Rows) error {
	var maps []pages // in order
	parts := map[pages][][]byte{}
	for _, r := range rows {
		for _, s := range c.spans(r.Name, r.Lo, r.Hi) {
			if parts[s.pages] == nil {
				maps = append(maps, s.pages)
			}
			parts[s.pages] = append(parts[s.pages], s.data)
		}
	}
	for _, m := range maps {
		if err := m.Drop(parts[m]...); err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
	}
	return nil
}

// Places calls f for the bytes [lo,hi) of files that come in parts which rows lie in.
func (c *Checkpoint) Places(name string, first, last int, f func(file string, lo, hi int64)) {
	for _, s := range c.spans(name, first, last) {
		if file, lo, hi, ok := s.Place(s.data); ok {
			f(file, lo, hi)
		}
	}
}

// There says whether rows have come that lie in files that come in parts.
func (c *Checkpoint) There(name string, lo, hi int) bool {
	for _, s := range c.spans(name, lo, hi) {
		if !s.There(s.data) {
			return false
		}
	}
	return true
}

func (c *Checkpoint) spans(name string, lo, hi int) []span {
	t, ok := c.tensors[name]
	if !ok {
		return nil
	}
	n, _ := matrix(t.Shape)
	if lo, hi = max(lo, 0), min(hi, n); lo >= hi {
		return nil
	}
	return t.spans(lo, hi)
}

// Warnings says in sentences what the weights are stored as that config.json does not lead to expect, and what of the
// checkpoint is left out.
func (c *Checkpoint) Warnings() []string { return slices.Clone(c.warnings) }

// Changed is an error that names the first file that was written to since it was opened.
func (c *Checkpoint) Changed() error {
	for _, f := range c.files {
		if err := f.Changed(); err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
	}
	return nil
}

// Close gives up all files; views of them are invalid after it.
func (c *Checkpoint) Close() error {
	var errs []error
	for _, f := range c.files {
		errs = append(errs, f.Close())
	}
	c.files, c.names = nil, nil
	clear(c.tensors)
	return errors.Join(errs...)
}

// matrix returns a shape's rows and columns: a scalar is a row of one.
func matrix(shape []int) (rows, cols int) {
	if len(shape) == 0 {
		return 1, 1
	}
	n := len(shape) - 1
	return elements(shape[:n]), shape[n]
}

// elements is the number of elements of a shape that has been checked.
func elements(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

// checkShape demands that a tensor of this shape could be held in memory as float64.
func checkShape(shape []int) error {
	n := uint64(8)
	for _, d := range shape {
		if d < 0 {
			return fmt.Errorf("its shape %d has a negative dimension", shape)
		}
		var hi uint64
		if hi, n = bits.Mul64(n, uint64(max(d, 1))); hi != 0 || n > math.MaxInt {
			return fmt.Errorf("its shape %d has more elements than fit", shape)
		}
	}
	return nil
}

// Instead says what a folder is that is no checkpoint: an adapter's, one of the hub's cache, or of another format; "" if that
// is not known either.
func Instead(dir string) string {
	has := func(name string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
	switch {
	case has(adapterConfig):
		return "it is the folder of an adapter (" + adapterConfig + "), not of a model: open its base, and merge the adapter into it"
	case has("snapshots"):
		list, _ := filepath.Glob(filepath.Join(dir, "snapshots", "*"))
		below := "a folder in snapshots"
		if len(list) > 0 {
			below = list[len(list)-1]
		}
		return "it is a folder of the Hugging Face hub's cache: the checkpoint lies below, in " + below
	case has("consolidated.safetensors"), has("consolidated.00.pth"), has("params.json"):
		return "it holds a model in its maker's own format (params.json, consolidated.*): take the one for the transformers library, " +
			"with config.json and model*.safetensors"
	}
	return ""
}

// missing tells an error that says that a folder holds no weights of one kind.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// plural is "1 tensor" or "2 tensors".
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, strings.TrimSuffix(what, "s"))
}
