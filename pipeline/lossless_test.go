package pipeline

import (
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// TestLossless: a checkpoint that was rounded to a type, and stored as floating-point numbers, becomes that type's file again,
// whatever the method. One linear that is off the grid is calibrated as ever.
func TestLossless(t *testing.T) {
	if testing.Short() {
		t.Skip("quantizes small models many times")
	}
	t.Parallel()
	methods := []quant.Method{RTN, GPTQ, AWQGPTQ, Auto}
	for _, typ := range []*ggml.Type{ggml.Q4_0, ggml.Q8_0, ggml.MXFP4} {
		tm := testmodel.New("llama-linear")
		const off = "blk.1.ffn_up.weight"
		first := map[string][]byte{}
		src := tm.Source()
		for _, info := range src.Tensors() {
			x, err := src.Tensor(info.Name)
			if err != nil {
				t.Fatal(err)
			}
			if ggml.ParseName(info.Name).Layer < 0 || len(info.Shape) < 2 || info.Name == off || info.Cols()%typ.BlockLen != 0 {
				continue
			}
			w := tensor.New(x.Rows(), x.Cols())
			x.Type.Decode(w.Data, x.Data)
			data, decoded := encode(typ, w, nil)
			x.Type.Encode(x.Data, decoded.Data, nil)
			first[info.Name] = data
		}
		if len(first) == 0 {
			t.Fatal("no tensor was rounded")
		}
		recipe := Recipe{Type: typ, Embedding: ggml.F16, Output: ggml.F16}
		for _, method := range methods {
			recipe.Method = method
			opt := Options{}
			if method != RTN {
				opt.Calib = sequences(tm, 4, 32)
			}
			path, rep := mustRun(t, src, recipe, opt)
			f := open(t, path)
			for i, r := range rep.Tensors {
				data, ok := first[r.Name]
				if r.Lossless != ok {
					t.Errorf("%s, %s: %s: lossless is %v", typ.Name, method.Name(), r.Name, r.Lossless)
				}
				if !ok {
					if rep.Plan.Tensors[i].Role == model.RoleLinear && r.RelativeError == 0 {
						t.Errorf("%s, %s: %s has no error", typ.Name, method.Name(), r.Name)
					}
					continue
				}
				if r.RelativeError != 0 || r.WeightError != 0 {
					t.Errorf("%s, %s: %s: errors %v %v", typ.Name, method.Name(), r.Name, r.RelativeError, r.WeightError)
				}
				got, err := f.Tensor(r.Name)
				if err != nil {
					t.Fatal(err)
				}
				a, b := make([]float32, got.Elements()), make([]float32, got.Elements())
				typ.Decode(a, got.Data)
				typ.Decode(b, data)
				for j := range a {
					if d := float64(a[j] - b[j]); d*d > 1e-5*float64(b[j]*b[j]) {
						t.Fatalf("%s, %s: %s: weight %d is %v, was first rounded to %v", typ.Name, method.Name(), r.Name, j, a[j], b[j])
					}
				}
			}
		}
		methods = methods[:2] // all of them need one type
	}
}
