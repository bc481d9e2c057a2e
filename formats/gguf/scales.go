package gguf

import (
	"fmt"
	"math"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
)

// Scaled is a file whose weights of NVFP4 have a further factor, as llama.cpp's converter keeps NVIDIA's checkpoints: X.scale
// holds one number for X.weight, or one for each expert, by which readers multiply products with it. Here X.weight appears
// as float32 with the factor in it, and without X.scale and X.input_scale, the factor of rounded inputs. Other tensors are the
// file's own.
type Scaled struct {
	*File
	infos  []ggml.Info
	scales map[string][]float32 // by the weight's name
}

// Scales returns f with the factors of its NVFP4 weights in them; nil if there are none.
func Scales(f *File) (*Scaled, error) {
	s := &Scaled{File: f, scales: map[string][]float32{}}
	for _, info := range f.infos {
		stem, ok := strings.CutSuffix(info.Name, ".weight")
		i, scaled := f.index[stem+".scale"]
		if !ok || !scaled || info.Type != ggml.NVFP4 {
			continue
		}
		values, err := f.factors(&f.infos[i], &info)
		if err != nil {
			return nil, err
		}
		s.scales[info.Name] = values
	}
	for _, info := range f.infos {
		if s.belongs(info.Name) {
			continue
		}
		if s.scales[info.Name] != nil {
			info.Type = ggml.F32
		}
		s.infos = append(s.infos, info)
	}
	if len(s.infos) == len(f.infos) {
		return nil, nil
	}
	return s, nil
}

// factors reads the numbers that a weight is multiplied by.
func (f *File) factors(info, weight *ggml.Info) ([]float32, error) {
	n := int(info.Elements())
	if n != 1 && (len(weight.Shape) != 3 || n != weight.Shape[0]) || info.Type != ggml.F32 {
		return nil, fmt.Errorf("gguf: %s: tensor %q: %s %v is no factor of %q %v: one F32, or one for each expert",
			f.Name(), info.Name, info.Type.Name, info.Shape, weight.Name, weight.Shape)
	}
	t, err := f.Tensor(info.Name)
	if err != nil {
		return nil, err
	}
	values := make([]float32, n)
	ggml.F32.Decode(values, t.Data)
	for i, v := range values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, fmt.Errorf("gguf: %s: tensor %q: element %d is %v", f.Name(), info.Name, i, v)
		}
	}
	return values, nil
}

// belongs says whether a tensor is one of factors: of a weight that has it here, or of the inputs of an NVFP4 weight.
func (s *Scaled) belongs(name string) bool {
	if stem, ok := strings.CutSuffix(name, ".scale"); ok {
		return s.scales[stem+".weight"] != nil
	}
	stem, ok := strings.CutSuffix(name, ".input_scale")
	i, found := s.index[stem+".weight"]
	return ok && found && s.File.infos[i].Type == ggml.NVFP4
}

// Tensors lists the tensors as they appear here.
func (s *Scaled) Tensors() []ggml.Info { return s.infos }

// Tensor returns a tensor: a view of the file, or a copy where it has a factor.
func (s *Scaled) Tensor(name string) (*ggml.Tensor, error) {
	t, err := s.File.Tensor(name)
	if err != nil || s.scales[name] == nil {
		return t, err
	}
	return s.decoded(t, 0), nil
}

// Rows returns rows lo ≤ row < hi of a tensor.
func (s *Scaled) Rows(name string, lo, hi int) (*ggml.Tensor, error) {
	t, err := s.File.Rows(name, lo, hi)
	if err != nil || s.scales[name] == nil {
		return t, err
	}
	return s.decoded(t, lo), nil
}

// Copies says that rows are decoded anew each time: of a tensor that has a factor.
func (s *Scaled) Copies(name string, _, _ int) bool { return s.scales[name] != nil }

// Factors are what the weights that Codes returns have to be multiplied by: one, or one for each expert; nil for other tensors.
func (s *Scaled) Factors(name string) []float32 { return s.scales[name] }

// Codes returns rows lo ≤ row < hi of a weight that has Factors, as the file holds them.
func (s *Scaled) Codes(name string, lo, hi int) (*ggml.Tensor, error) {
	return s.File.Rows(name, lo, hi)
}

// decoded returns rows of a weight, from row first on, in float32 and multiplied.
func (s *Scaled) decoded(t *ggml.Tensor, first int) *ggml.Tensor {
	scales, cols := s.scales[t.Name], t.Cols()
	each := s.File.infos[s.index[t.Name]].Rows() / len(scales)
	out := &ggml.Tensor{Info: t.Info, Data: make([]byte, 4*t.Elements())}
	out.Type = ggml.F32
	row, size := make([]float32, cols), t.Type.RowBytes(cols)
	for r := range t.Rows() {
		t.Type.Unpack(row, t.Data[r*size:(r+1)*size])
		factor := scales[(first+r)/max(each, 1)]
		for j := range row {
			row[j] *= factor
		}
		ggml.F32.Encode(out.Data[4*r*cols:4*(r+1)*cols], row, nil)
	}
	return out
}

// Release is for views of the file.
func (s *Scaled) Release(t *ggml.Tensor) {
	if s.scales[t.Name] == nil || t.Type == ggml.NVFP4 {
		s.File.Release(t)
	}
}
