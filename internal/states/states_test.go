package states

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/tensor"
)

// TestBounds: batches of a fixed size leave a last one of what is over; an even division has batches, and parts of as many, within one of each
// other, and is the same where all are of one size.
func TestBounds(t *testing.T) {
	for _, c := range []struct{ got, want []int }{
		{Fixed(5, 2), []int{0, 2, 4, 5}}, {Fixed(4, 2), []int{0, 2, 4}}, {Fixed(2, 9), []int{0, 2}}, {Fixed(2, 0), []int{0, 1, 2}}, {Fixed(0, 3), []int{0}},
		{Evenly(5, 3), []int{0, 1, 3, 5}}, {Evenly(60, 8), []int{0, 7, 15, 22, 30, 37, 45, 52, 60}}, {Evenly(3, 1), []int{0, 3}}, {Evenly(0, 0), []int{0}},
		{Evenly(24, 4), Fixed(24, 6)}, {Evenly(3, 3), Fixed(3, 1)},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%v, want %v", c.got, c.want)
		}
	}
	for batches := 1; batches <= 40; batches++ {
		for seqs := batches; seqs <= 100; seqs++ {
			bounds := Evenly(seqs, batches)
			for parts := 1; parts <= batches; parts++ {
				if batches%parts > 0 {
					continue
				}
				for part := range parts {
					lo, hi := bounds[part*batches/parts], bounds[(part+1)*batches/parts]
					if n := hi - lo; n != seqs/parts && n != (seqs+parts-1)/parts {
						t.Fatalf("%d sequences, %d batches: part %d of %d has %d", seqs, batches, part, parts, n)
					}
				}
			}
			if most := Largest(bounds); bounds[0] != 0 || bounds[batches] != seqs || most != (seqs+batches-1)/batches {
				t.Fatalf("%d sequences, %d batches: %v, at most %d", seqs, batches, bounds, most)
			}
		}
	}
}

// uneven are batches of two, one and three sequences, a part of others.
var uneven = []int{4, 7, 9, 10, 13, 15}[1:5]

// TestStore fills a store batch by batch and reads it back, in memory and in a file, with a short last batch.
func TestStore(t *testing.T) {
	for _, batches := range [][]int{Fixed(5, 2), uneven} {
		t.Run(fmt.Sprint(batches), func(t *testing.T) { testStore(t, batches) })
	}
}

func testStore(t *testing.T, batches []int) {
	for _, budget := range []int64{0, 1 << 20, 1} {
		dir := t.TempDir()
		s, err := New(batches, 3, 4, budget, dir)
		if err != nil {
			t.Fatal(err)
		}
		if want := budget == 1; s.Spilled() != want {
			t.Fatalf("budget %d: spilled %v", budget, s.Spilled())
		}
		if s.Batches() != 3 {
			t.Fatalf("%d batches of 3", s.Batches())
		}
		for i := range s.Batches() {
			x, err := s.Get(i)
			if err != nil {
				t.Fatal(err)
			}
			lo, hi := s.Sequences(i)
			if lo != batches[i]-batches[0] || hi != batches[i+1]-batches[0] || x.Rows != (hi-lo)*3 || x.Cols != 4 {
				t.Fatalf("batch %d is %d×%d, of sequences %d to %d", i, x.Rows, x.Cols, lo, hi-1)
			}
			for r := range x.Rows {
				for c := range x.Row(r) {
					x.Row(r)[c] = float32(100*(lo*3+r) + c)
				}
			}
			if err := s.Put(i, x); err != nil {
				t.Fatal(err)
			}
		}
		s.Rest()
		if s.buf != nil {
			t.Fatalf("budget %d: a batch is in memory after Rest", budget)
		}
		for i := s.Batches() - 1; i >= 0; i-- {
			x, err := s.Get(i)
			if err != nil {
				t.Fatal(err)
			}
			lo, _ := s.Sequences(i)
			for r := range x.Rows {
				for c, v := range x.Row(r) {
					if want := float32(100*(lo*3+r) + c); v != want {
						t.Fatalf("budget %d: batch %d row %d column %d: %v, want %v", budget, i, r, c, v, want)
					}
				}
			}
		}
		// Sequences amid two batches pass to another store, whose batches are others.
		other, err := New(Fixed(s.Len(), 1), 3, 4, budget, dir)
		if err != nil {
			t.Fatal(err)
		}
		var saved, loaded strings.Builder
		if err := s.SaveSequences(&saved, 1, 4); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(other.LoadSequences(strings.NewReader(saved.String()), 1, 4), other.SaveSequences(&loaded, 1, 4)); err != nil {
			t.Fatal(err)
		}
		if saved.String() != loaded.String() || saved.Len() != 4*3*3*4 {
			t.Errorf("budget %d: %d bytes of sequences, in another store they are others", budget, saved.Len())
		}
		if err := errors.Join(s.Close(), other.Close()); err != nil {
			t.Fatal(err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Fatalf("budget %d: %s is left", budget, left[0].Name())
		}
	}
}

// TestStoreBF16: states come back rounded to bfloat16, from memory and from a file, which have half the size.
func TestStoreBF16(t *testing.T) {
	for _, budget := range []int64{0, 1} {
		s, err := NewBF16(uneven, 3, 4, budget, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if want := budget == 1; s.Spilled() != want || s.Bytes() != 2*6*3*4 {
			t.Fatalf("budget %d: spilled %v, %d bytes", budget, s.Spilled(), s.Bytes())
		}
		value := func(row, c int) float32 { return 1 + float32(row*4+c)/1000 }
		for i := range s.Batches() {
			x, err := s.Get(i)
			if err != nil {
				t.Fatal(err)
			}
			lo, _ := s.Sequences(i)
			for r := range x.Rows {
				for c := range x.Row(r) {
					x.Row(r)[c] = value(3*lo+r, c)
				}
			}
			if err := s.Put(i, x); err != nil {
				t.Fatal(err)
			}
		}
		s.Rest()
		fork := s.Fork()
		for i := s.Batches() - 1; i >= 0; i-- {
			x, err := fork.Get(i)
			if err != nil {
				t.Fatal(err)
			}
			lo, _ := s.Sequences(i)
			for r := range x.Rows {
				for c, v := range x.Row(r) {
					if want := tensor.BF16(tensor.ToBF16(value(3*lo+r, c))); v != want {
						t.Fatalf("budget %d: batch %d row %d column %d: %v, want %v", budget, i, r, c, v, want)
					}
				}
			}
		}
	}
}

// TestReadWrite: what Write stores of a matrix, narrower than the states or with padding, Read brings back, in parts and wherever it is.
func TestReadWrite(t *testing.T) {
	const seqLen, dim = partRows + 7, 10
	for _, budget := range []int64{0, 1} {
		for _, bf16 := range []bool{false, true} {
			make := New
			if bf16 {
				make = NewBF16
			}
			s, err := make(uneven, seqLen, dim, budget, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for _, cols := range []int{dim, 3} {
				value := func(batch, row, c int) float32 {
					v := float32(cols) + float32(1000*batch+10*row+c)/7
					if bf16 {
						v = tensor.BF16(tensor.ToBF16(v))
					}
					return v
				}
				shape := func(i int) *tensor.Matrix {
					lo, hi := s.Sequences(i)
					return tensor.New((hi-lo)*seqLen, cols+2).View(0, (hi-lo)*seqLen, 1, cols+1)
				}
				for i := range s.Batches() {
					x := shape(i)
					for r := range x.Rows {
						for c := range cols {
							x.Row(r)[c] = value(i, r, c)
						}
					}
					if err := s.Write(i, x); err != nil {
						t.Fatal(err)
					}
				}
				for i := range s.Batches() {
					x := shape(i)
					if err := s.Read(i, x); err != nil {
						t.Fatal(err)
					}
					for r := range x.Rows {
						for c, v := range x.Row(r) {
							if want := value(i, r, c); v != want {
								t.Fatalf("budget %d, bfloat16 %v, %d columns: batch %d, row %d, column %d is %v, want %v", budget, bf16, cols, i, r, c, v, want)
							}
						}
					}
				}
			}
		}
	}
}

// TestRound: values are those that a store in bfloat16 gives back, of any number.
func TestRound(t *testing.T) {
	x := tensor.New(3, 1031)
	for i := range x.Data {
		x.Data[i] = 1 + float32(i)/1000
	}
	want := x.Clone()
	Round(x)
	for i, v := range x.Data {
		if w := tensor.BF16(tensor.ToBF16(want.Data[i])); v != w {
			t.Fatalf("value %d: %v, want %v", i, v, w)
		}
	}
}
