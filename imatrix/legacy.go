package imatrix

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// The older form, little-endian: the number of entries; of each the length of its name, the name, a number of calls n, the number of
// values, and values n·Σx²/count; then the number of chunks, and the length and name of the text. A tensor's experts have one n.

// maxName bounds a name's length, as GGUF does.
const maxName = 1 << 16

func readLegacy(f io.Reader, size int64) (*Matrix, error) {
	r := &reader{r: bufio.NewReader(f), left: size}
	entries := r.number("the number of entries", 1, size/13) // an entry has three numbers and a letter at least
	m := &Matrix{}
	for i := range entries {
		if r.err != nil {
			break
		}
		e := Entry{Name: r.text(fmt.Sprintf("entry %d's name", i+1), 1)}
		calls := r.number(fmt.Sprintf("%q's number of calls", e.Name), 0, math.MaxInt32)
		values := r.number(fmt.Sprintf("%q's number of values", e.Name), 1, r.left/4)
		data := r.bytes(fmt.Sprintf("%q's values", e.Name), 4*values)
		e.Sums, e.Counts = make([]float32, len(data)/4), []int64{calls}
		for j := range e.Sums {
			e.Sums[j] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*j:]))
		}
		m.Entries = append(m.Entries, e)
	}
	if r.err == nil && r.left > 0 { // older files end here
		m.Chunks = int(r.number("the number of chunks", 0, math.MaxInt32))
		if name := r.text("the text's name", 0); name != "" {
			m.Datasets = []string{name}
		}
	}
	if r.err == nil && r.left > 0 {
		r.err = fmt.Errorf("%d bytes follow its end", r.left)
	}
	return m, r.err
}

// reader reads numbers from a file of which so many bytes are left. The first failure is kept.
type reader struct {
	r    io.Reader
	left int64
	err  error
}

func (r *reader) bytes(what string, n int64) []byte {
	if r.err == nil && n > r.left {
		r.err = fmt.Errorf("%s: needs %d bytes, %d are left", what, n, r.left)
	}
	if r.err != nil {
		return nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.r, b); err != nil {
		r.err = fmt.Errorf("%s: %w", what, err)
		return nil
	}
	r.left -= n
	return b
}

func (r *reader) number(what string, lo, hi int64) int64 {
	b := r.bytes(what, 4)
	if b == nil {
		return 0
	}
	n := int64(int32(binary.LittleEndian.Uint32(b)))
	if n < lo || n > hi {
		r.err = fmt.Errorf("%s is %d, want %d to %d", what, n, lo, hi)
		return 0
	}
	return n
}

func (r *reader) text(what string, least int64) string {
	return string(r.bytes(what, r.number("the length of "+what, least, min(maxName, r.left))))
}

// Legacy returns the matrix in the older form. What no token reached is 1 there, as llama-imatrix writes it.
func (m *Matrix) Legacy() []byte {
	var b bytes.Buffer
	number := func(n int) { binary.Write(&b, binary.LittleEndian, int32(n)) }
	number(len(m.Entries))
	for i := range m.Entries {
		e := &m.Entries[i]
		number(len(e.Name))
		b.WriteString(e.Name)
		var most int64
		for _, n := range e.Counts {
			most = max(most, n)
		}
		size := int64(max(m.ChunkSize, 1))
		calls := (most + size - 1) / size
		number(int(calls))
		number(len(e.Sums))
		for x := range e.Counts {
			for _, v := range e.Importance(x) {
				binary.Write(&b, binary.LittleEndian, v*float32(calls))
			}
		}
	}
	number(m.Chunks)
	name := ""
	if len(m.Datasets) > 0 {
		name = m.Datasets[len(m.Datasets)-1]
	}
	number(len(name))
	b.WriteString(name)
	return b.Bytes()
}
