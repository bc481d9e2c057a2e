package checkpoint

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/tensor"
)

// part is a stored tensor.
type part struct {
	name  string
	file  string // that holds it, for messages
	dtype safetensors.DType
	shape []int
	data  []byte // little-endian, row-major; where strides is set, from the first element to the end of its storage
	// strides are of the dimensions, in elements, where the elements do not follow each other in the shape's order.
	strides []int
	m       *mmap.Map
	claimed bool // it belongs to a logical tensor, or is left out
}

// openFolder lists the stored tensors of a folder: of safetensors files, else of torch's.
func openFolder(dir string, open func(path string) (*mmap.Map, error)) (parts []*part, files []file, err error) {
	if fi, err := os.Stat(dir); err != nil {
		return nil, nil, fmt.Errorf("checkpoint: %w", err)
	} else if !fi.IsDir() {
		return nil, nil, fmt.Errorf("checkpoint: %s: not a folder", dir)
	}
	if open == nil {
		open = mmap.Open
	}
	st, err := safetensors.OpenWith(dir, open)
	if err == nil {
		parts, err = safetensorsParts(st)
		if err != nil {
			st.Close()
			return nil, nil, err
		}
		return parts, []file{st}, nil
	}
	if !holdsNone(dir) {
		return nil, nil, err
	}
	names, ok, e := torchFiles(dir)
	if e != nil {
		return nil, nil, e
	}
	if ok {
		return openTorch(dir, names)
	}
	if what := Instead(dir); what != "" {
		return nil, nil, formatErrorf("%s: %s", dir, what)
	}
	return nil, nil, fmt.Errorf("checkpoint: %s: holds no weights: neither %s nor shards of it, nor %s: %w", dir,
		safetensors.SingleFile, torchFile, fs.ErrNotExist)
}

// holdsNone tells that a folder has no safetensors files of a model.
func holdsNone(dir string) bool {
	list, err := os.ReadDir(dir)
	return err == nil && !slices.ContainsFunc(list, func(f fs.DirEntry) bool {
		return strings.HasPrefix(f.Name(), "model") && strings.Contains(f.Name(), ".safetensors")
	})
}

// safetensorsParts lists what a checkpoint of safetensors files stores.
func safetensorsParts(st *safetensors.Checkpoint) ([]*part, error) {
	var parts []*part
	for _, name := range st.Names() {
		info, _ := st.Lookup(name)
		data, m, _ := st.Raw(name)
		p := &part{name: name, file: info.Shard, dtype: info.DType, shape: info.Shape, data: data, m: m}
		if err := checkShape(p.shape); err != nil {
			return nil, p.errorf("%v", err)
		}
		parts = append(parts, p)
	}
	return parts, nil
}

func (p *part) errorf(format string, args ...any) error {
	return formatErrorf("%s: tensor %q: "+format, append([]any{p.file, p.name}, args...)...)
}

// plainType returns the type of floats that are handed on as they are.
func (p *part) plainType() *ggml.Type {
	switch p.dtype {
	case safetensors.F32:
		return ggml.F32
	case safetensors.F16:
		return ggml.F16
	case safetensors.BF16:
		return ggml.BF16
	}
	return nil
}

// packed returns the data without strides, of a part that is small or is read as a whole.
func (p *part) packed() []byte {
	if p.strides == nil {
		return p.data
	}
	n, _ := matrix(p.shape)
	return p.gather(0, n)
}

// gather copies rows of a part whose elements do not follow each other.
func (p *part) gather(lo, hi int) []byte {
	size := int(p.dtype.Bits() / 8)
	_, cols := matrix(p.shape)
	dst := make([]byte, 0, (hi-lo)*cols*size)
	last := len(p.shape) - 1
	for r := lo; r < hi; r++ {
		at, rest := 0, r
		for d := last - 1; d >= 0; d-- {
			at += rest % p.shape[d] * p.strides[d]
			rest /= p.shape[d]
		}
		for range cols {
			dst = append(dst, p.data[at*size:(at+1)*size]...)
			if last >= 0 {
				at += p.strides[last]
			}
		}
	}
	return dst
}

// rowSpan is where rows lo to hi of a part of rowBytes a row lie.
func (p *part) rowSpan(lo, hi, rowBytes int) []span {
	if p.strides != nil || p.m == nil {
		return nil
	}
	return []span{{p.m, p.data[lo*rowBytes : hi*rowBytes]}}
}

// plain is a tensor of floats that are handed on as they are.
type plain struct {
	part     *part
	rowBytes int
}

func newPlain(p *part) plain {
	_, cols := matrix(p.shape)
	return plain{p, cols * int(p.dtype.Bits()/8)}
}

func (t plain) rows(lo, hi int) ([]byte, error) {
	if m := t.part.m; m != nil { // the tensor as a whole, be it a little at a time that is read
		need := t.part.data
		if t.part.strides == nil && m.Gone(need) { // rows that are spent are not to come again for the others
			need = need[lo*t.rowBytes : hi*t.rowBytes]
		}
		if err := m.Need(need); err != nil {
			return nil, &absentError{err}
		}
	}
	if t.part.strides != nil {
		return t.part.gather(lo, hi), nil
	}
	return t.part.data[lo*t.rowBytes : hi*t.rowBytes : hi*t.rowBytes], nil
}

func (t plain) spans(lo, hi int) []span { return t.part.rowSpan(lo, hi, t.rowBytes) }

// absentError says why a part of a file that is not all there has not come.
type absentError struct{ error }

// double is a tensor of float64, which is rounded to float32.
type double struct{ plain }

func (t double) rows(lo, hi int) ([]byte, error) {
	src, err := t.plain.rows(lo, hi)
	if err != nil {
		return nil, err
	}
	dst := make([]byte, len(src)/2)
	for i := range len(src) / 8 {
		f := float32(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(f))
	}
	return dst, nil
}

// floats is an array of floats of any type: scales, mostly.
type floats struct {
	data []byte
	at   func(data []byte, i int) float32
	// bytes, where not nil, are the floats that bytes stand for, the same as at.
	bytes *[256]float32
}

// floatsOf reads a part's elements as floats; scaleBits says that bytes are E8M0, powers of two.
func floatsOf(p *part, scaleBits bool) (floats, error) {
	dtype := p.dtype
	if scaleBits && dtype == safetensors.U8 {
		dtype = safetensors.F8E8M0
	}
	f := floats{data: p.packed()}
	switch dtype {
	case safetensors.F32:
		f.at = func(b []byte, i int) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:])) }
	case safetensors.F64:
		f.at = func(b []byte, i int) float32 {
			return float32(math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:])))
		}
	case safetensors.F16:
		f.at = func(b []byte, i int) float32 { return tensor.F16(binary.LittleEndian.Uint16(b[2*i:])) }
	case safetensors.BF16:
		f.at = func(b []byte, i int) float32 { return tensor.BF16(binary.LittleEndian.Uint16(b[2*i:])) }
	case safetensors.F8E4M3:
		f.at, f.bytes = func(b []byte, i int) float32 { return e4m3[b[i]] }, &e4m3
	case safetensors.F8E5M2:
		f.at, f.bytes = func(b []byte, i int) float32 { return e5m2[b[i]] }, &e5m2
	case safetensors.F8E8M0:
		f.at = func(b []byte, i int) float32 { return e8m0[b[i]] }
	default:
		return f, p.errorf("its type %s is no float's", p.dtype)
	}
	return f, nil
}

func (f floats) get(i int) float32 { return f.at(f.data, i) }
