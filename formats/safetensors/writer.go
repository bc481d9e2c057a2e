package safetensors

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"github.com/llmq/llmq/internal/atomicfile"
)

// Options are Create's. The zero value refuses to replace a file.
type Options = atomicfile.Options

// Writer streams one safetensors file. The file appears under its name when Close has found it complete and on the
// disk, and not before.
type Writer struct {
	path  string
	infos []Info
	ends  []int64 // of each tensor's data in the file
	at    int64   // the next byte's offset
	out   *atomicfile.File
	err   error // the first write that failed
}

// Create starts a file with the given tensors, whose data must follow in this order, and metadata, which may be nil.
// The Shard of an info is not used. An empty tensor is refused.
func Create(path string, infos []Info, metadata map[string]string, opt Options) (*Writer, error) {
	header, ends, err := encodeHeader(infos, metadata)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %s: %w", path, err)
	}
	size := int64(len(header))
	if len(ends) > 0 {
		size = ends[len(ends)-1]
	}
	out, err := atomicfile.Create(path, size, opt)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	w := &Writer{path: path, infos: infos, ends: ends, out: out}
	if _, err := w.write(header); err != nil {
		out.Abort()
		return nil, err
	}
	return w, nil
}

// encodeHeader returns the length and the header, padded to 8 bytes, and where each tensor ends in the file.
func encodeHeader(infos []Info, metadata map[string]string) ([]byte, []int64, error) {
	b := append(make([]byte, lengthBytes), '{')
	if len(metadata) > 0 {
		m, err := json.Marshal(metadata)
		if err != nil {
			return nil, nil, err
		}
		b = fmt.Appendf(b, "%q:%s", metadataKey, m)
	}
	ends := make([]int64, len(infos))
	seen := map[string]bool{metadataKey: true}
	end := uint64(0)
	for i := range infos {
		t := &infos[i]
		if seen[t.Name] {
			return nil, nil, fmt.Errorf("the name %q is taken", t.Name)
		}
		seen[t.Name] = true
		if len(t.Shape) > maxDims {
			return nil, nil, fmt.Errorf("tensor %q: %d dimensions, more than %d", t.Name, len(t.Shape), maxDims)
		}
		if t.DType.Bits() == 0 {
			return nil, nil, fmt.Errorf("tensor %q: no type is named %q", t.Name, t.DType)
		}
		lo := end
		bytes, rest, ok := size(t.DType, t.Shape)
		if !ok || rest != 0 || bytes > math.MaxInt64/2 || slices.ContainsFunc(t.Shape, func(n int) bool { return n <= 0 }) {
			return nil, nil, fmt.Errorf("tensor %q: its shape %d is impossible", t.Name, t.Shape)
		}
		if end += bytes; end > math.MaxInt64/2 {
			return nil, nil, fmt.Errorf("tensor %q: the file grows past 62 bits", t.Name)
		}
		ends[i] = int64(end)
		name, err := json.Marshal(t.Name)
		if err != nil {
			return nil, nil, err
		}
		shape, err := json.Marshal(append([]int{}, t.Shape...)) // a scalar's shape is [], not null
		if err != nil {
			return nil, nil, err
		}
		if len(b) > lengthBytes+1 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, `%s:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, name, t.DType, shape, lo, end)
	}
	b = append(b, '}')
	for len(b)%8 != 0 {
		b = append(b, ' ')
	}
	if len(b)-lengthBytes > maxHeaderBytes {
		return nil, nil, fmt.Errorf("a header of %d bytes, more than %d", len(b)-lengthBytes, maxHeaderBytes)
	}
	binary.LittleEndian.PutUint64(b, uint64(len(b)-lengthBytes))
	for i := range ends {
		ends[i] += int64(len(b))
	}
	return b, ends, nil
}

// Write stores the following bytes of the tensors' data, so that large ones can come in pieces.
func (w *Writer) Write(p []byte) (int, error) {
	if i := w.current(); i == len(w.infos) || int64(len(p)) > w.ends[len(w.ends)-1]-w.at {
		return 0, fmt.Errorf("safetensors: %s: more data than the tensors need", w.path)
	}
	return w.write(p)
}

func (w *Writer) write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.out.WriteAt(p, w.at)
	w.at += int64(n)
	if err != nil {
		w.err = fmt.Errorf("safetensors: %w", err)
	}
	return n, w.err
}

// current is the first tensor that is not complete.
func (w *Writer) current() int {
	i, _ := slices.BinarySearch(w.ends, w.at+1)
	return i
}

// Close checks that all data has come and puts the file in its place. When it fails, nothing is left behind.
func (w *Writer) Close() error {
	if i := w.current(); w.err == nil && i < len(w.infos) {
		w.err = fmt.Errorf("safetensors: %s: tensor %q: %d bytes are missing", w.path, w.infos[i].Name, w.ends[i]-w.at)
	}
	if w.err != nil {
		w.out.Abort()
		return w.err
	}
	if err := w.out.Commit(); err != nil {
		return fmt.Errorf("safetensors: %w", err)
	}
	return nil
}

// Abort gives the file up and leaves nothing behind. After Close it does nothing, so it can be deferred.
func (w *Writer) Abort() { w.out.Abort() }
