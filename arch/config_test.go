package arch_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/formats/safetensors"
)

// stored are the tensors of a checkpoint, no two of which are equal.
type stored struct{ *safetensors.Checkpoint }

func (s stored) Shape(name string) ([]int, bool) {
	info, ok := s.Lookup(name)
	return info.Shape, ok
}

func (s stored) Equal(a, b string) bool { return a == b }

func (s stored) Blocks(string) bool { return false }

// TestOddConfig puts odd values in the place of each member of each reference's config.json: there is an error, or a
// conversion all rows of which are in the checkpoint.
func TestOddConfig(t *testing.T) {
	odd := []string{"null", "0", "1", "3", "-5", "2147483648", "0.5", "1e30", `"odd"`, `""`, "true", "false", "[]", "[0]",
		"[1,2,3,4,5,6,7,8,9,10]", `["full_attention","sliding_attention"]`, "{}", `{"rope_type":"yarn"}`, `{"rope_type":"longrope"}`, `{"full_attention":{}}`}
	for _, dir := range references(t) {
		data, err := os.ReadFile(filepath.Join(dir, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		if torch, _ := filepath.Glob(filepath.Join(dir, "*.bin")); len(torch) > 0 {
			continue // a pickle of what other folders have in safetensors files
		}
		weights, err := safetensors.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { weights.Close() })
		t.Run(filepath.Base(dir), func(t *testing.T) {
			var config map[string]json.RawMessage
			if err := json.Unmarshal(data, &config); err != nil {
				t.Fatal(err)
			}
			convertOdd(t, config, stored{weights})
			each(config, odd, func() { convertOdd(t, config, stored{weights}) })
		})
	}
}

// each calls f with every member of config, and of the objects in it, replaced by every value.
func each(config map[string]json.RawMessage, values []string, f func()) {
	for _, key := range slices.Sorted(maps.Keys(config)) {
		was := config[key]
		for _, v := range values {
			config[key] = json.RawMessage(v)
			f()
		}
		var inner map[string]json.RawMessage
		if json.Unmarshal(was, &inner) == nil && inner != nil {
			each(inner, values, func() {
				config[key], _ = json.Marshal(inner)
				f()
			})
		}
		config[key] = was
	}
}

func convertOdd(t *testing.T, config map[string]json.RawMessage, weights stored) {
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if p := recover(); p != nil {
			t.Errorf("panic: %v, of %s", p, data)
		}
	}()
	o, err := object.Parse("config.json", data)
	if err != nil {
		t.Fatal(err)
	}
	c, err := arch.Convert(o, weights, arch.Options{})
	if err != nil {
		if !strings.Contains(err.Error(), "config.json") && !strings.Contains(err.Error(), "tensor") {
			t.Errorf("error %q names neither the file nor a tensor", err)
		}
		return
	}
	for _, s := range c.Tensors {
		if err := within(s, weights); err != nil {
			t.Errorf("%s: %v, of %s", s.Name, err, data)
		}
	}
}

// within says what is wrong with the parts of a tensor.
func within(s *arch.Tensor, weights stored) error {
	rows, all := 1, 1
	for _, n := range s.Shape[:len(s.Shape)-1] {
		rows *= n
	}
	if all = rows * s.Shape[len(s.Shape)-1]; len(s.Parts) == 0 {
		if len(s.Values) != all {
			return fmt.Errorf("%v has %d values", s.Shape, len(s.Values))
		}
		return nil
	}
	if len(s.Shape) == 1 {
		rows = s.Shape[0] // of one column, or one row
	}
	n, vector := 0, false
	for _, p := range s.Parts {
		shape, ok := weights.Shape(p.Name)
		if !ok {
			return fmt.Errorf("the checkpoint has no %q", p.Name)
		}
		n += p.Count
		vector = vector || len(shape) == 1
		if len(shape) < 2 || p.Transposed {
			continue
		}
		have := 1
		for _, d := range shape[:len(shape)-1] {
			have *= d
		}
		for r := range p.Count {
			at := p.First + r
			if p.Row != nil {
				at = p.Row(r)
			}
			if at < 0 || at >= have {
				return fmt.Errorf("row %d is row %d of %q, which has %d", r, at, p.Name, have)
			}
		}
	}
	// Of a vector in the checkpoint the elements count as rows.
	if n != rows && !(len(s.Shape) == 1 && n == 1) && !(vector && n == all) {
		return fmt.Errorf("%v has %d rows in the checkpoint", s.Shape, n)
	}
	return nil
}
