package gptq

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"testing"

	st "github.com/nlpodyssey/safetensors"

	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// authorsGrid is the authors' Quantizer as a grid: a float32 scale and an integer zero point for each group.
func authorsGrid(bits, group int, sym, mse bool) *quant.Grid {
	maxq := float32(int(1)<<bits - 1)
	g := &quant.Grid{
		Name: "authors", Block: group, Group: group, CodeMin: 0, CodeMax: int(maxq),
		ScaleMin: 1, ScaleMax: 1, MinMax: 1,
	}
	params := func(lo, hi float32) (scale, zero float32) {
		scale = (hi - lo) / maxq
		if sym {
			return scale, (maxq + 1) / 2
		}
		return scale, float32(math.RoundToEven(float64(-lo / scale)))
	}
	fit := func(b *quant.Block, w []float32) {
		var lo, hi float32
		for _, v := range w {
			lo, hi = min(lo, v), max(hi, v)
		}
		if sym {
			hi = max(-lo, hi)
			if lo < 0 {
				lo = -hi
			}
		}
		if lo == 0 && hi == 0 {
			lo, hi = -1, 1
		}
		scale, zero := params(lo, hi)
		if mse {
			best := math.Inf(1)
			for i := range 80 {
				p := 1 - float32(i)/100
				s, z := params(p*lo, p*hi)
				if !sym {
					z = float32(math.RoundToEven(float64(-p * lo / s)))
				}
				var err float64
				for _, v := range w {
					q := float32(g.Nearest(v, s, s*z))
					err += math.Pow(math.Abs(float64(s*(q-z)-v)), 2.4)
				}
				if err < best {
					best, scale, zero = err, s, z
				}
			}
		}
		b.D, b.DMin, b.Sc[0], b.M[0] = scale, scale*zero, 1, 1
	}
	g.Fit = func(b []quant.Block, w, _ []float32) {
		for i := range b {
			fit(&b[i], w[i*group:(i+1)*group])
		}
	}
	return g
}

// TestAuthors compares with the results of IST-DASLab/gptq's fasterquant on the same weight, Hessian and settings.
func TestAuthors(t *testing.T) {
	data, err := os.ReadFile(shared.Path(t, "refs/gptq-authors.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := st.Deserialize(data)
	if err != nil {
		t.Fatal(err)
	}
	matrix := func(name string) *tensor.Matrix {
		v, ok := file.Tensor(name)
		if !ok {
			t.Fatalf("no tensor %q", name)
		}
		shape := v.Shape()
		m := tensor.New(int(shape[0]), int(shape[1]))
		if v.DType() == st.F64 {
			for i := range m.Data {
				m.Data[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(v.Data()[8*i:])))
			}
		} else {
			tensor.DecodeF32(m.Data, v.Data())
		}
		return m
	}
	w, h := matrix("W"), matrix("H")

	var settings map[string]struct {
		Error     float64 `json:"relative_output_error"`
		Bits      int     `json:"bits"`
		Sym       bool    `json:"sym"`
		GroupSize int     `json:"groupsize"`
		ActOrder  bool    `json:"actorder"`
		Static    bool    `json:"static_groups"`
		MSE       bool    `json:"mse"`
	}
	text, err := os.ReadFile(shared.Path(t, "refs/gptq-authors.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &settings); err != nil {
		t.Fatal(err)
	}
	for name, s := range settings {
		t.Run(name, func(t *testing.T) {
			group := s.GroupSize
			if group < 0 {
				group = w.Cols
			}
			g := authorsGrid(s.Bits, group, s.Sym, s.MSE)
			opt := Options{NoActOrder: !s.ActOrder, StaticScales: s.Static, NoRefine: true}
			f, err := NewFactor(t.Context(), h, g, opt)
			if err != nil {
				t.Fatal(err)
			}
			q, err := f.Quantize(t.Context(), w, g)
			if err != nil {
				t.Fatal(err)
			}
			got := tensor.New(w.Rows, w.Cols)
			q.DecodeTo(got)
			e := quant.OutputError(w, got, h)
			theirs := quant.OutputError(w, matrix("Q."+name), h)
			if math.Abs(theirs/s.Error-1) > 1e-3 {
				t.Fatalf("the authors' result has error %v here, %v in their run", theirs, s.Error)
			}
			t.Logf("relative output error %.6f, authors %.6f: ratio %.4f", e, theirs, e/theirs)
			if e > 1.01*theirs {
				t.Errorf("relative output error %v, authors %v", e, theirs)
			}
			opt.NoRefine = false
			if f, err = NewFactor(t.Context(), h, g, opt); err != nil {
				t.Fatal(err)
			}
			if q, err = f.Quantize(t.Context(), w, g); err != nil {
				t.Fatal(err)
			}
			q.DecodeTo(got)
			refined := quant.OutputError(w, got, h)
			t.Logf("refined: %.6f, ratio %.4f", refined, refined/theirs)
		})
	}
}
