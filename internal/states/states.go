// Package states carries hidden states from one transformer layer to the next: in memory while they fit a budget, in a
// temporary file when they do not.
package states

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sync/errgroup"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/encode"
	"github.com/llmq/llmq/tensor"
)

// Store holds the hidden states of many sequences in batches of whole sequences. It is for one goroutine, or see Fork.
type Store struct {
	batches     []int
	seqLen, dim int
	valueBytes  int            // 4: float32, 2: bfloat16
	mem         *tensor.Matrix // in memory as float32
	half        []byte         // in memory as bfloat16
	file        *os.File
	// buf is the batch that Get returned last, where that is not the storage itself; nil before the first Get and after Rest.
	buf *tensor.Matrix
}

// New returns a zero store of sequences of seqLen tokens with dim features each. batches are the sequences at which batches begin and, last,
// the one at which the last ends, as Evenly and Fixed have them; of a part of such a list the first is the store's sequence 0.
// What needs more than budget bytes lives in a temporary file in dir ("": the system's), which is gone when the
// process ends, however it ends, where the system allows; budget 0 means no limit.
func New(batches []int, seqLen, dim int, budget int64, dir string) (*Store, error) {
	return newStore(batches, seqLen, dim, 4, budget, dir)
}

// NewBF16 is New for states that Put rounds to bfloat16, in half the room.
func NewBF16(batches []int, seqLen, dim int, budget int64, dir string) (*Store, error) {
	return newStore(batches, seqLen, dim, 2, budget, dir)
}

// Evenly divides sequences into so many batches, no more than sequences: batch i has [i·seqs/batches, (i+1)·seqs/batches). Batches differ by one
// sequence at most, and so do parts of as many batches each, if they are all.
func Evenly(seqs, batches int) []int {
	bounds := make([]int, batches+1)
	for i := range batches {
		bounds[i+1] = (i + 1) * seqs / batches
	}
	return bounds
}

// Fixed divides sequences into batches of size, at least one, and what is left.
func Fixed(seqs, size int) []int {
	bounds := []int{0}
	for at := 0; at < seqs; {
		at = min(at+max(1, size), seqs)
		bounds = append(bounds, at)
	}
	return bounds
}

// Largest is the most sequences of a batch.
func Largest(batches []int) (most int) {
	for i, lo := range batches[:len(batches)-1] {
		most = max(most, batches[i+1]-lo)
	}
	return most
}

func newStore(batches []int, seqLen, dim, valueBytes int, budget int64, dir string) (*Store, error) {
	s := &Store{batches: batches, seqLen: seqLen, dim: dim, valueBytes: valueBytes}
	if budget == 0 || s.Bytes() <= budget {
		if valueBytes == 2 {
			s.half = make([]byte, s.Bytes())
		} else {
			s.mem = tensor.New(s.Len()*seqLen, dim)
		}
		return s, nil
	}
	file, err := os.CreateTemp(dir, ".llmq-states-*")
	if err != nil {
		return nil, fmt.Errorf("hidden states: %w", err)
	}
	os.Remove(file.Name()) // on Unix the open file lives on without its name; elsewhere this fails and Close removes it
	s.file = file
	if err := file.Truncate(s.Bytes()); err != nil {
		err = fmt.Errorf("hidden states: %d bytes in %s: %w", s.Bytes(), file.Name(), err)
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Fork returns a store of the same states for another goroutine, which uses other batches. s alone is to be closed.
func (s *Store) Fork() *Store {
	f := *s
	f.buf = nil
	return &f
}

// Bytes is the size of all states.
func (s *Store) Bytes() int64 { return s.offset(s.Len()) }

// Spilled says whether the states live in a file.
func (s *Store) Spilled() bool { return s.file != nil }

// Batches is the number of batches.
func (s *Store) Batches() int { return len(s.batches) - 1 }

// Sequences returns the range of sequences in batch i.
func (s *Store) Sequences(i int) (lo, hi int) {
	return s.batches[i] - s.batches[0], s.batches[i+1] - s.batches[0]
}

// Get returns batch i, (sequences·seqLen)×dim. It is valid until the next Get; changes to it last only after Put.
func (s *Store) Get(i int) (*tensor.Matrix, error) {
	lo, hi := s.Sequences(i)
	rows := (hi - lo) * s.seqLen
	if s.mem != nil {
		return s.mem.View(lo*s.seqLen, hi*s.seqLen, 0, s.dim), nil
	}
	if s.buf == nil {
		s.buf = tensor.New(Largest(s.batches)*s.seqLen, s.dim)
	}
	x := s.buf.View(0, rows, 0, s.dim)
	stored := s.stored(lo, hi, x)
	if s.file != nil {
		if _, err := s.file.ReadAt(stored, s.offset(lo)); err != nil {
			return nil, fmt.Errorf("hidden states: reading batch %d: %w", i, err)
		}
	}
	if s.valueBytes == 2 {
		inParts(len(x.Data), func(lo, hi int) { tensor.DecodeBF16(x.Data[lo:hi], stored[2*lo:]) })
	}
	return x, nil
}

// Put stores batch i, which Get returned.
func (s *Store) Put(i int, x *tensor.Matrix) error {
	if s.mem != nil {
		return nil // Get returned the storage itself
	}
	lo, hi := s.Sequences(i)
	stored := s.stored(lo, hi, x)
	if s.valueBytes == 2 {
		inParts(len(x.Data), func(lo, hi int) { encode.BF16(stored[2*lo:], x.Data[lo:hi]) })
	}
	if s.file == nil {
		return nil
	}
	if _, err := s.file.WriteAt(stored, s.offset(lo)); err != nil {
		return fmt.Errorf("hidden states: writing batch %d, %d bytes: %w", i, len(stored), err)
	}
	return nil
}

// Round rounds values to bfloat16, as they come back from a store that NewBF16 has made.
func Round(x *tensor.Matrix) {
	const part = 1 << 10
	inParts(len(x.Data), func(lo, hi int) {
		var half [2 * part]byte
		for ; lo < hi; lo += part {
			v := x.Data[lo:min(lo+part, hi)]
			encode.BF16(half[:2*len(v)], v)
			tensor.DecodeBF16(v, half[:])
		}
	})
}

// inParts spreads work on values over the processors.
func inParts(n int, f func(lo, hi int)) {
	const grain = 1 << 14 // values: some microseconds of work
	kernels.Parallel(n, grain, f)
}

// stored returns the storage of sequences [lo,hi), whose states are x, or room for what a file has of them: x's own if it will do.
func (s *Store) stored(lo, hi int, x *tensor.Matrix) []byte {
	switch {
	case s.file == nil:
		return s.half[s.offset(lo):s.offset(hi)]
	case s.valueBytes == 4:
		return bytes(x)
	}
	return make([]byte, s.offset(hi)-s.offset(lo))
}

// partRows is how many tokens Read and Write take at a time, on each processor.
const partRows = 64

// Write stores x, a token in each row, as batch i. Where x has fewer than dim features, what the others are is unspecified.
func (s *Store) Write(i int, x *tensor.Matrix) error {
	return s.parts(i, x, func(part *tensor.Matrix, stored []byte, at int64) error {
		size := s.valueBytes * s.dim
		for t := range part.Rows {
			row := stored[t*size:][:s.valueBytes*part.Cols]
			if s.valueBytes == 2 {
				tensor.EncodeBF16(row, part.Row(t))
			} else {
				copy(row, bytes(part.View(t, t+1, 0, part.Cols)))
			}
		}
		if s.file == nil {
			return nil
		}
		if _, err := s.file.WriteAt(stored, at); err != nil {
			return fmt.Errorf("hidden states: writing %d bytes of batch %d: %w", len(stored), i, err)
		}
		return nil
	})
}

// Read sets x to batch i, or to as many features of its tokens as x has columns.
func (s *Store) Read(i int, x *tensor.Matrix) error {
	return s.parts(i, x, func(part *tensor.Matrix, stored []byte, at int64) error {
		if s.file != nil {
			if _, err := s.file.ReadAt(stored, at); err != nil {
				return fmt.Errorf("hidden states: reading %d bytes of batch %d: %w", len(stored), i, err)
			}
		}
		size := s.valueBytes * s.dim
		for t := range part.Rows {
			row := stored[t*size:][:s.valueBytes*part.Cols]
			if s.valueBytes == 2 {
				tensor.DecodeBF16(part.Row(t), row)
			} else {
				copy(bytes(part.View(t, t+1, 0, part.Cols)), row)
			}
		}
		return nil
	})
}

// parts calls do for the rows of x, which are batch i's, partRows at a time on each processor, with their storage, or room for what the
// file has of them from at on.
func (s *Store) parts(i int, x *tensor.Matrix, do func(part *tensor.Matrix, stored []byte, at int64) error) error {
	lo, hi := s.Sequences(i)
	if x.Rows != (hi-lo)*s.seqLen || x.Cols > s.dim {
		panic("states: the batch has another shape")
	}
	memory := s.half
	if s.mem != nil {
		memory = bytes(s.mem)
	}
	var group errgroup.Group
	group.SetLimit(kernels.Processors())
	for first := 0; first < x.Rows; first += partRows {
		part := x.View(first, min(first+partRows, x.Rows), 0, x.Cols)
		group.Go(func() error {
			token := int64(s.valueBytes) * int64(s.dim)
			from := s.offset(lo) + int64(first)*token
			size := int64(part.Rows) * token
			if s.file == nil {
				return do(part, memory[from:from+size], from)
			}
			return do(part, make([]byte, size), from)
		})
	}
	return group.Wait()
}

// Rest gives back the memory for a batch, until the next Get.
func (s *Store) Rest() { s.buf = nil }

// Len is how many sequences there are.
func (s *Store) Len() int { return s.batches[s.Batches()] - s.batches[0] }

// Save writes all states, as the machine has them in memory.
func (s *Store) Save(w io.Writer) error { return s.SaveSequences(w, 0, s.Len()) }

// SaveSequences writes sequences [lo,hi): what Save writes of a store that has no others.
func (s *Store) SaveSequences(w io.Writer, lo, hi int) error {
	return s.eachPart(lo, hi, func(i int, batch, part *tensor.Matrix) error {
		_, err := w.Write(bytes(part))
		return err
	})
}

// Load reads what Save has written of a store of the same size.
func (s *Store) Load(r io.Reader) error { return s.LoadSequences(r, 0, s.Len()) }

// LoadSequences reads what SaveSequences has written of sequences [lo,hi).
func (s *Store) LoadSequences(r io.Reader, lo, hi int) error {
	return s.eachPart(lo, hi, func(i int, batch, part *tensor.Matrix) error {
		if _, err := io.ReadFull(r, bytes(part)); err != nil {
			return fmt.Errorf("hidden states: batch %d: %w", i, err)
		}
		return s.Put(i, batch)
	})
}

// eachPart calls do for the batches that sequences [lo,hi) are in, with that part of them.
func (s *Store) eachPart(lo, hi int, do func(i int, batch, part *tensor.Matrix) error) error {
	for i := range s.Batches() {
		first, last := s.Sequences(i)
		a, b := max(lo, first)-first, min(hi, last)-first
		if a >= b {
			continue
		}
		x, err := s.Get(i)
		if err != nil {
			return err
		}
		if err := do(i, x, x.View(a*s.seqLen, b*s.seqLen, 0, s.dim)); err != nil {
			return err
		}
	}
	return nil
}

// Close frees the store.
func (s *Store) Close() error {
	s.mem, s.half, s.buf = nil, nil, nil
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	os.Remove(s.file.Name())
	s.file = nil
	return err
}

func (s *Store) offset(seq int) int64 {
	return int64(s.valueBytes) * int64(seq) * int64(s.seqLen) * int64(s.dim)
}

// bytes is x's storage in the machine's own byte order: the file never leaves the process.
func bytes(x *tensor.Matrix) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x.Data))), 4*len(x.Data))
}
