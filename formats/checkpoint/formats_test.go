package checkpoint

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/tensor"
)

// nf4 are NormalFloat4's values as bitsandbytes stores them.
var nf4 = []float32{-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0, 0.0795803, 0.1609302, 0.2461123,
	0.33791524, 0.44070983, 0.562617, 0.72295684, 1}

// TestFormats encodes a weight in each format and reads it back.
func TestFormats(t *testing.T) {
	type test struct {
		name, config string
		parts        []stored
		tensor       string
		shape        []int
		want         []float32
	}
	var tests []test
	for _, width := range []int{2, 3, 4, 8} {
		for _, v2 := range []bool{false, true} {
			format := "gptq"
			if v2 {
				format = "gptq_v2"
			}
			parts, want := gptqFolder(width, 32, 64, 16, v2, width == 4)
			tests = append(tests, test{fmt.Sprint(format, width), fmt.Sprintf(`{"quant_method":"gptq","bits":%d,"checkpoint_format":%q}`, width, format),
				parts, "m.weight", []int{32, 64}, want})
		}
	}
	parts, want := awqFolder(16, 64, 32)
	tests = append(tests, test{"awq", `{"quant_method":"awq","bits":4,"version":"gemm"}`, parts, "m.weight", []int{16, 64}, want})

	// Codes 0x38, 0x40, 0xb8, 0x08 of E4M3 are 1, 2, −1 and 2⁻⁶; blocks of 2×2 of a weight of 3×4.
	fp8 := []byte{0x38, 0x40, 0xb8, 0x08, 0x38, 0x38, 0x38, 0x38, 0x40, 0x40, 0x40, 0x40}
	plainFP8 := []float32{1, 2, -1, 1. / 64, 1, 1, 1, 1, 2, 2, 2, 2}
	weight := stored{"m.weight", safetensors.F8E4M3, []int{3, 4}, fp8}
	times := func(scale func(i, j int) float32) []float32 {
		w := slices.Clone(plainFP8)
		for k := range w {
			w[k] *= scale(k/4, k%4)
		}
		return w
	}
	s4 := []float32{3, 5, 7, 11}
	tests = append(tests,
		test{"fp8 block", `{"quant_method":"fp8","weight_block_size":[2,2]}`, []stored{weight,
			{"m.weight_scale_inv", safetensors.F32, []int{2, 2}, floats32(s4...)}, {"m.input_scale", safetensors.F32, nil, floats32(1)}},
			"m.weight", weight.shape, times(func(i, j int) float32 { return s4[i/2*2+j/2] })},
		test{"fp8 channel", `{"quant_method":"fp8"}`, []stored{weight, {"m.weight_scale", safetensors.F32, []int{3, 1}, floats32(s4[:3]...)}},
			"m.weight", weight.shape, times(func(i, j int) float32 { return s4[i] })},
		test{"fp8 tensor", `{"quant_method":"fp8"}`, []stored{weight, {"m.weight_scale", safetensors.F32, nil, floats32(3)}},
			"m.weight", weight.shape, times(func(i, j int) float32 { return 3 })},
		test{"fp8 power of two", `{"quant_method":"fp8"}`, []stored{weight, {"m.scale", safetensors.F8E8M0, nil, []byte{129}}},
			"m.weight", weight.shape, times(func(i, j int) float32 { return 4 })},
		test{"fp8 cast", ``, []stored{weight}, "m.weight", weight.shape, plainFP8},
		test{"fp8 experts", `{"quant_method":"fp8"}`, []stored{{"experts.up", safetensors.F8E4M3, []int{3, 2, 2}, fp8},
			{"experts.up_scale", safetensors.F32, []int{3, 1, 1}, floats32(s4[:3]...)}}, "experts.up", []int{3, 2, 2},
			times(func(i, j int) float32 { return s4[i] })},
		test{"fp8 experts' rows", `{"quant_method":"fp8"}`, []stored{{"experts.up", safetensors.F8E4M3, []int{2, 2, 3}, fp8},
			{"experts.up_scale", safetensors.F32, []int{2, 2, 1}, floats32(s4...)}}, "experts.up", []int{2, 2, 3},
			func() []float32 {
				w := slices.Clone(plainFP8)
				for i := range w {
					w[i] *= s4[i/3]
				}
				return w
			}()},
		test{"int8", `{"quant_method":"compressed-tensors"}`, []stored{{"m.weight", safetensors.I8, []int{2, 2}, []byte{1, 0xff, 0x80, 127}},
			{"m.weight_scale", safetensors.F32, []int{2, 1}, floats32(2, 0.5)}}, "m.weight", []int{2, 2}, []float32{2, -2, -64, 63.5}},
		test{"int8 zero point", `{"quant_method":"compressed-tensors"}`, []stored{{"m.weight", safetensors.I8, []int{2, 2}, []byte{1, 0xff, 0x80, 127}},
			{"m.weight_scale", safetensors.F32, []int{2, 1}, floats32(2, 0.5)}, {"m.weight_zero_point", safetensors.I8, []int{2, 1}, []byte{1, 0xfe}}},
			"m.weight", []int{2, 2}, []float32{0, -4, -63, 64.5}},
		test{"bnb int8", `{"quant_method":"bitsandbytes"}`, []stored{{"m.weight", safetensors.I8, []int{2, 2}, []byte{1, 0xff, 0x81, 127}},
			{"m.SCB", safetensors.F32, []int{2}, floats32(127, 2)}, {"m.weight_format", safetensors.U8, nil, []byte{0}}},
			"m.weight", []int{2, 2}, []float32{1, -1, -2, 2}},
		test{"nested nf4", `{"quant_method":"bitsandbytes"}`, []stored{{"m.weight", safetensors.U8, []int{2, 1}, []byte{0x0f, 0x78}},
			{"m.weight.absmax", safetensors.U8, []int{2}, []byte{1, 2}}, {"m.weight.quant_map", safetensors.F32, []int{16}, floats32(nf4...)},
			{"m.weight.nested_absmax", safetensors.F32, []int{1}, floats32(4)},
			{"m.weight.nested_quant_map", safetensors.F32, []int{256}, floats32(append([]float32{0, 0.25, 0.5}, make([]float32, 253)...)...)},
			state("nf4", `{"quant_type":"nf4","blocksize":2,"shape":[2,2],"nested_blocksize":256,"nested_offset":0.5}`)},
			"m.weight", []int{2, 2}, []float32{-1.5, 1.5, 0, nf4[8] * 2.5}},
		test{"mxfp4 experts", `{"quant_method":"mxfp4"}`, []stored{{"e.up_blocks", safetensors.U8, []int{2, 1, 1, 16}, fp4Bytes(16)},
			{"e.up_scales", safetensors.U8, []int{2, 1, 1}, []byte{127, 128}}}, "e.up", []int{2, 1, 32}, fp4Values(32, func(i int) float32 { return float32(1 + i/32) })},
		test{"nvfp4 modelopt", `{"quant_method":"modelopt"}`, []stored{{"m.weight", safetensors.U8, []int{1, 16}, fp4Bytes(8)},
			{"m.weight_scale", safetensors.F8E4M3, []int{1, 2}, []byte{0x38, 0x40}}, {"m.weight_scale_2", safetensors.F32, nil, floats32(0.5)}},
			"m.weight", []int{1, 32}, fp4Values(16, func(i int) float32 { return 0.5 * float32(1+i/16) })},
		test{"nvfp4 ct", `{"quant_method":"compressed-tensors"}`, []stored{{"m.weight_packed", safetensors.U8, []int{1, 16}, fp4Bytes(8)},
			{"m.weight_scale", safetensors.F8E4M3, []int{1, 2}, []byte{0x38, 0x40}}, {"m.weight_global_scale", safetensors.F32, []int{1}, floats32(2)}},
			"m.weight", []int{1, 32}, fp4Values(16, func(i int) float32 { return 0.5 * float32(1+i/16) })},
		test{"f64", ``, []stored{{"m.weight", safetensors.F64, []int{1}, binary.LittleEndian.AppendUint64(nil, math.Float64bits(0.1))}},
			"m.weight", []int{1}, []float32{0.1}},
	)
	// compressed-tensors int4, 3×16 in groups of 8, with zero points along the outputs.
	codes, zeros := make([]int, 3*16), []int{3, 9, 15, 0, 7, 8}
	scales := []float32{1, 2, 4, 0.5, 0.25, 8}
	want = make([]float32, len(codes))
	for i := range codes {
		codes[i] = code(i, 4)
		g := i/16*2 + i%16/8
		want[i] = float32(codes[i]-zeros[g]) * scales[g]
	}
	zp := ints32(3|15<<4|7<<8, 9|0<<4|8<<8) // a word a group, a code an output
	tests = append(tests, test{"int4 zero point", `{"quant_method":"compressed-tensors","config_groups":{"g":{"weights":{"num_bits":4,"group_size":8}}}}`,
		[]stored{{"m.weight_packed", safetensors.I32, []int{3, 2}, pack(codes, 4, 16)}, {"m.weight_scale", safetensors.F32, []int{3, 2}, floats32(scales...)},
			{"m.weight_zero_point", safetensors.I32, []int{1, 2}, zp},
			{"m.weight_shape", safetensors.I32, []int{2}, ints32(3, 16)}}, "m.weight", []int{3, 16}, want})

	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := Open(folder(t, test.parts), Config{Quantization: json.RawMessage(test.config)})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			info, ok := c.Lookup(test.tensor)
			if names := c.Names(); !ok || len(names) != 1 || names[0] != test.tensor || !slices.Equal(info.Shape, test.shape) {
				t.Fatalf("%v: %+v", names, info)
			}
			compare(t, test.tensor, floatsOfTensor(t, c, test.tensor), test.want, 0)
		})
		// Whatever part is missing, or of another shape, is an error and no panic.
		for i := range test.parts {
			for _, edit := range []func(s *stored){
				func(s *stored) { s.name = "other" },
				func(s *stored) { s.shape = append([]int{1}, s.shape...) },
				func(s *stored) { s.shape, s.data = append([]int{}, s.shape...), append([]byte{}, s.data...); grow(s) },
			} {
				parts := slices.Clone(test.parts)
				edit(&parts[i])
				tryAll(t, folder(t, parts), Config{Quantization: json.RawMessage(test.config)})
			}
		}
	}
}

// grow doubles a part's first dimension.
func grow(s *stored) {
	if len(s.shape) > 0 {
		s.shape[0] *= 2
		s.data = append(s.data, s.data...)
	}
}

// tryAll reads all rows of whatever opens.
func tryAll(t testing.TB, dir string, cfg Config) {
	c, err := Open(dir, cfg)
	if err != nil {
		return
	}
	defer c.Close()
	for _, name := range c.Names() {
		info, _ := c.Lookup(name)
		n, cols := matrix(info.Shape)
		if n > 1<<12 || cols > 1<<16 {
			continue
		}
		if b, err := c.Rows(name, 0, n); err == nil && len(b) != n*info.Type.RowBytes(cols) {
			t.Errorf("%s: %d bytes for %d %s", name, len(b), info.Shape, info.Type)
		}
		c.Release(name, 0, n)
	}
}

func state(kind, text string) stored {
	return stored{"m.weight.quant_state.bitsandbytes__" + kind, safetensors.U8, []int{len(text)}, []byte(text)}
}

// fp4Bytes are blocks of n bytes: two of them, whose codes count up.
func fp4Bytes(n int) []byte {
	b := make([]byte, 2*n)
	for i := range b {
		b[i] = byte(2*i&15 | (2*i+1)&15<<4)
	}
	return b
}

// fp4Values are what they mean, times a scale a column.
func fp4Values(block int, scale func(i int) float32) []float32 {
	values := []float32{0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6}
	w := make([]float32, 2*block)
	for i := range w {
		w[i] = values[i%16] * scale(i)
	}
	return w
}

func TestFloat8(t *testing.T) {
	for _, test := range []struct {
		got, want float32
	}{
		{e4m3[0x7e], 448}, {e4m3[0x01], 1. / 512}, {e4m3[0xfe], -448}, {e4m3[0x08], 1. / 64}, {e5m2[0x7b], 57344}, {e5m2[0x01], 1. / 65536},
		{e5m2[0x7c], float32(math.Inf(1))}, {e8m0[127], 1}, {e8m0[0], float32(math.Ldexp(1, -127))}, {e8m0[254], float32(math.Ldexp(1, 127))},
	} {
		if test.got != test.want {
			t.Errorf("got %g, want %g", test.got, test.want)
		}
	}
	for _, v := range []float32{e4m3[0x7f], e4m3[0xff], e5m2[0x7d], e8m0[255]} {
		if v == v {
			t.Errorf("%g is not NaN", v)
		}
	}
}

// TestTorch reads views of a storage: whole, transposed, of a part.
func TestTorch(t *testing.T) {
	storage := floats32(0, 1, 2, 3, 4, 5, 6, 7)
	for _, test := range []struct {
		offset         byte
		shape, strides [2]byte
		want           []float32
		err            string
	}{
		{0, [2]byte{2, 4}, [2]byte{4, 1}, []float32{0, 1, 2, 3, 4, 5, 6, 7}, ""},
		{1, [2]byte{1, 3}, [2]byte{9, 1}, []float32{1, 2, 3}, ""},
		{0, [2]byte{4, 2}, [2]byte{1, 4}, []float32{0, 4, 1, 5, 2, 6, 3, 7}, ""},
		{1, [2]byte{2, 2}, [2]byte{4, 2}, []float32{1, 3, 5, 7}, ""},
		{1, [2]byte{2, 4}, [2]byte{4, 1}, nil, "past the end of its storage of 8"},
		{0, [2]byte{8, 8}, [2]byte{0, 0}, nil, "more than once"},
	} {
		dir := t.TempDir()
		writeFile(t, dir, torchFile, torchZip(t, statePickle(8, test.offset, test.shape, test.strides), storage))
		c, err := Open(dir, Config{})
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) || !strings.Contains(err.Error(), `pytorch_model.bin: tensor "w"`) {
				t.Errorf("%v, want %s", err, test.err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		compare(t, "w", floatsOfTensor(t, c, "w"), test.want, 0)
		c.Close()
	}
}

func TestPickleRefuses(t *testing.T) {
	for pickle, want := range map[string]string{
		"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.": `"os system", which is not executed`,
		"\x80\x02c__builtin__\neval\n)R.":                "which is not executed",
		"\x80\x02}":                                      "ends before its STOP",
		"\x80\x02X\xff\xff\xff\xffabc":                   "ends before its STOP",
		"\x80\x02t.":                                     "no mark on the stack",
		"\x80\x02h\x07.":                                 "no memo 7",
		"\x80\x02i.":                                     "does not occur in state dicts",
		"\x80\x09N.":                                     "protocol 9",
		"(.":                                             "a mark in place of a value",
	} {
		if v, err := unpickle([]byte(pickle)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %s", pickle, v, err, want)
		}
	}
}

// TestLoRA merges an adapter of rank 1 whose products are whole numbers.
func TestLoRA(t *testing.T) {
	base := []stored{{"x.q.weight", safetensors.F32, []int{2, 3}, floats32(1, 2, 3, 4, 5, 6)},
		{"x.k.weight", safetensors.F32, []int{2, 3}, floats32(1, 2, 3, 4, 5, 6)}}
	adapter := []stored{{"base_model.model.x.q.lora_A.weight", safetensors.F32, []int{1, 3}, floats32(1, 10, 100)},
		{"base_model.model.x.q.lora_B.weight", safetensors.F32, []int{2, 1}, floats32(1, 2)}}
	open := func(config string, adapter []stored) (*Checkpoint, error) {
		dir := t.TempDir()
		writeFile(t, dir, adapterConfig, []byte(config))
		writeFile(t, dir, adapterFile, encode(adapter))
		return Open(folder(t, base), Config{LoRA: dir})
	}
	for config, want := range map[string][]float32{
		`{"peft_type":"LORA","r":1,"lora_alpha":2}`:                                                  {3, 22, 203, 8, 45, 406},
		`{"peft_type":"LORA","r":4,"lora_alpha":2,"rank_pattern":{"q":1},"alpha_pattern":{"x.q":3}}`: {4, 32, 303, 10, 65, 606},
	} {
		c, err := open(config, adapter)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, "q", floatsOfTensor(t, c, "x.q.weight"), want, 0)
		compare(t, "k", floatsOfTensor(t, c, "x.k.weight"), []float32{1, 2, 3, 4, 5, 6}, 0)
		c.Close()
	}
	c, err := Open(folder(t, []stored{{"x.q.weight", safetensors.F32, []int{3, 2}, floats32(1, 4, 2, 5, 3, 6)}}), Config{})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for config, want := range map[string]string{
		`{"r":1,"use_dora":true}`:                  "DoRA",
		`{"r":1,"modules_to_save":["lm_head"]}`:    `modules_to_save ["lm_head"]`,
		`{"r":1,"bias":"all"}`:                     `bias "all"`,
		`{"r":2}`:                                  "its shape is [1 3], not [2 3]",
		`{"r":1,"init_lora_weights":"pissa"}`:      `init_lora_weights "pissa"`,
		`{"peft_type":"IA3"}`:                      `peft_type "IA3"`,
		`{"r":0}`:                                  "r is 0",
		`{"r":1,"rank_pattern":{"(":1}}`:           "rank_pattern",
		`{"r":1,"rank_pattern":{"q":1.5}}`:         "a rank of 1.5",
		`{"r":1,"fan_in_fan_out":true}`:            "its shape is [1 3], not [1 2]",
		"version https://git-lfs.github.com/spec/": "a Git LFS pointer",
	} {
		if _, err := open(config, adapter); err == nil || !strings.Contains(err.Error(), want) && want != "rank_pattern" {
			t.Errorf("%s: %v, want %s", config, err, want)
		}
	}
	if _, err := open(`{"r":1}`, adapter[:1]); err == nil || !strings.Contains(err.Error(), "lora_B.weight") {
		t.Errorf("without B: %v", err)
	}
}

// TestLoRATransposed merges into a weight that is stored in×out.
func TestLoRATransposed(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, adapterConfig, []byte(`{"r":1,"lora_alpha":2,"fan_in_fan_out":true}`))
	writeFile(t, dir, adapterFile, encode([]stored{{"x.lora_A.weight", safetensors.F32, []int{1, 3}, floats32(1, 10, 100)},
		{"x.lora_B.weight", safetensors.F32, []int{2, 1}, floats32(1, 2)}}))
	c, err := Open(folder(t, []stored{{"x.weight", safetensors.F32, []int{3, 2}, floats32(1, 4, 2, 5, 3, 6)}}), Config{LoRA: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	compare(t, "x", floatsOfTensor(t, c, "x.weight"), []float32{3, 8, 22, 45, 203, 406}, 0)
}

// TestWhatItIs names what a folder is when it is no checkpoint, and notes what is left out.
func TestWhatItIs(t *testing.T) {
	adapterDir, cache, pointer := t.TempDir(), t.TempDir(), t.TempDir()
	writeFile(t, adapterDir, adapterConfig, []byte("{}"))
	writeFile(t, adapterDir, adapterFile, encode(nil))
	writeFile(t, pointer, safetensors.SingleFile, []byte("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 99\n"))
	if err := os.MkdirAll(filepath.Join(cache, "snapshots", "abc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{adapterDir: "the folder of an adapter", cache: filepath.Join("snapshots", "abc"),
		pointer: "a Git LFS pointer for a file of 99 bytes", t.TempDir(): "holds no weights"} {
		if _, err := Open(dir, Config{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	c, err := Open(folder(t, []stored{{"m.weight", safetensors.F32, []int{1}, floats32(1)}, {"position_ids", safetensors.I32, []int{1}, ints32(1)},
		{"m.k_scale", safetensors.F32, nil, floats32(1)}}), Config{Quantization: json.RawMessage(`{"load_in_4bit":true}`)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if w := c.Warnings(); len(c.Names()) != 1 || len(w) != 3 || !strings.Contains(w[0], "(bitsandbytes), but all weights are plain") ||
		!strings.Contains(w[1], "m.k_scale") || !strings.Contains(w[2], "position_ids") {
		t.Errorf("%q, %q", c.Names(), w)
	}
	for _, config := range []string{`"x"`, `[]`, `{"bits":"4"}`} { // left over
		c, err := Open(folder(t, []stored{{"m.weight", safetensors.F32, []int{1}, floats32(1)}}), Config{Quantization: json.RawMessage(config)})
		if err != nil {
			t.Errorf("%s: %v", config, err)
			continue
		}
		if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], "does not belong there), but all weights are plain floats: it is ignored") {
			t.Errorf("%s: %q", config, w)
		}
		c.Close()
	}
	_, err = Open(folder(t, []stored{{"m.weight", safetensors.U8, []int{1}, []byte{0}}}), Config{})
	if err == nil || !strings.Contains(err.Error(), `model.safetensors: tensor "m.weight": U8 [1] is stored in no format`) {
		t.Error(err)
	}
}

// TestConfigRefuses names what quantization_config has that would change what the weights mean.
func TestConfigRefuses(t *testing.T) {
	gptq, _ := gptqFolder(4, 32, 64, 16, false, false)
	awq, _ := awqFolder(16, 64, 32)
	outOfRange := slices.Clone(gptq)
	outOfRange = append(outOfRange, stored{"m.g_idx", safetensors.I32, []int{64}, ints32(append([]int32{4}, make([]int32, 63)...)...)})
	for _, test := range []struct {
		config string
		parts  []stored
		want   string
	}{
		{`{"quant_method":"gptq","bits":3}`, gptq, `tensor "m.qweight": its zero points have 4 bits, quantization_config has [3]`},
		{`{"quant_method":"gptq","checkpoint_format":"marlin"}`, gptq, `checkpoint_format "marlin"`},
		{`{"quant_method":"awq","version":"gemv"}`, awq, `AWQ's layout "gemv"`},
		{`{"quant_method":"auto-round","packing_format":"auto_round"}`, gptq, `packing_format "auto_round"`},
		{`{"quant_method":"compressed-tensors","transform_config":{"a":1}}`, gptq, "transform_config"},
		{`{"weight_block_size":[0,1]}`, gptq, "blocks of [0 1]"},
		{`[]`, gptq, "quantization_config: a JSON array does not belong there"},
		{`{"quant_method":"gptq","bits":"4"}`, gptq, "quantization_config: bits: a JSON string does not belong there"},
		{`{"config_groups":{"a":{"weights":{"num_bits":[]}}}}`, gptq, "num_bits: a JSON array does not belong there"},
		{`{"quant_method":"gptq"}`, gptq[:2], `has no "m.scales" beside it`},
		{`{"quant_method":"gptq"}`, outOfRange, "g_idx: column 0 belongs to group 4 of 4"},
		{`{"quant_method":"fp8"}`, []stored{{"m.weight", safetensors.F8E4M3, []int{1, 1}, []byte{1}}}, `"m.weight_scale_inv"`},
		{`{}`, []stored{{"m.weight", safetensors.F8E4M3, []int{1, 2}, []byte{1, 2}}, {"m.weight_scale", safetensors.F32, []int{3}, floats32(1, 2, 3)}},
			`tensor "m.weight_scale": its shape [3] fits "m.weight" [1 2] in no way`},
	} {
		c, err := Open(folder(t, test.parts), Config{Quantization: json.RawMessage(test.config)})
		if err == nil {
			_, err = c.Rows("m.weight", 0, 1)
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", test.config, err, test.want)
		}
	}
}

// FuzzPickle demands an error or a value of any bytes, in memory that they are in proportion to.
func FuzzPickle(f *testing.F) {
	f.Add(statePickle(8, 0, [2]byte{2, 4}, [2]byte{4, 1}))
	f.Add([]byte("\x80\x02}X\x01\x00\x00\x00aK\x01s."))
	f.Add([]byte("\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94]\x94(K\x01J\xff\xff\xff\xff\x8a\x01\xffG\x00\x00\x00\x00\x00\x00\x00\x00e."))
	storage := floats32(0, 1, 2, 3, 4, 5, 6, 7)
	f.Fuzz(func(t *testing.T, pickle []byte) {
		dir := t.TempDir()
		writeFile(t, dir, torchFile, torchZip(t, pickle, storage))
		tryAll(t, dir, Config{})
	})
}

// FuzzParts opens any safetensors file with any quantization_config.
func FuzzParts(f *testing.F) {
	parts, _ := gptqFolder(3, 32, 64, 16, false, true)
	f.Add(encode(parts), []byte(`{"quant_method":"gptq","bits":3,"group_size":16}`))
	parts, _ = awqFolder(16, 64, 32)
	f.Add(encode(parts), []byte(`{"quant_method":"awq","bits":4,"version":"gemm"}`))
	f.Add(encode([]stored{{"m.weight_packed", safetensors.I32, []int{1, 1}, ints32(1)}, {"m.weight_scale", safetensors.F32, []int{1, 1}, floats32(1)},
		{"m.weight_shape", safetensors.I32, []int{2}, ints32(1, 8)}}), []byte(`{"config_groups":{"a":{"weights":{"num_bits":4}}}}`))
	f.Add(encode([]stored{{"m.weight", safetensors.F8E4M3, []int{2, 2}, make([]byte, 4)}, {"m.weight_scale_inv", safetensors.F32, []int{1, 1}, floats32(1)}}),
		[]byte(`{"weight_block_size":[2,2]}`))
	f.Add(encode([]stored{{"m.weight", safetensors.U8, []int{2, 1}, make([]byte, 2)}, {"m.weight.absmax", safetensors.F32, []int{1}, floats32(1)},
		{"m.weight.quant_map", safetensors.F32, []int{16}, floats32(nf4...)}, state("nf4", `{"quant_type":"nf4","blocksize":64,"shape":[2,2]}`)}), []byte(`{}`))
	f.Fuzz(func(t *testing.T, file, config []byte) {
		dir := t.TempDir()
		writeFile(t, dir, safetensors.SingleFile, file)
		tryAll(t, dir, Config{Quantization: config})
	})
}

// FuzzAdapter merges any safetensors file with any adapter_config.json.
func FuzzAdapter(f *testing.F) {
	base := f.TempDir()
	writeFile(f, base, safetensors.SingleFile, encode([]stored{{"x.q.weight", safetensors.F32, []int{2, 3}, floats32(1, 2, 3, 4, 5, 6)},
		{"x.k.weight", safetensors.BF16, []int{2, 2}, make([]byte, 8)}}))
	pair := []stored{{"base_model.model.x.q.lora_A.weight", safetensors.F32, []int{1, 3}, floats32(1, 10, 100)},
		{"base_model.model.x.q.lora_B.weight", safetensors.F32, []int{2, 1}, floats32(1, 2)}}
	f.Add(encode(pair), []byte(`{"r":1,"lora_alpha":2}`))
	f.Add(encode(pair[:1]), []byte(`{"r":1,"lora_alpha":2}`))
	f.Add(encode(pair), []byte(`{"r":1,"lora_alpha":2,"fan_in_fan_out":true,"use_rslora":true,"rank_pattern":{"q":1},"alpha_pattern":{"^x.q$":4}}`))
	f.Add(encode(nil), []byte(`{"peft_type":"LOHA"}`))
	f.Fuzz(func(t *testing.T, file, config []byte) {
		dir := t.TempDir()
		writeFile(t, dir, adapterConfig, config)
		writeFile(t, dir, adapterFile, file)
		tryAll(t, base, Config{LoRA: dir})
	})
}

// TestCodes: rows of NVFP4 can be had as ggml's blocks, which decode to the same weights but for their factors.
func TestCodes(t *testing.T) {
	const experts, rows, cols = 2, 3, 128
	codes, scales := make([]byte, experts*rows*cols/2), make([]byte, experts*rows*cols/16)
	for i := range codes {
		codes[i] = byte(i*37 + i/7)
	}
	for i := range scales {
		scales[i] = byte(i*29) % 127
	}
	open := func() *Checkpoint {
		dir := folder(t, []stored{{"up.weight", safetensors.U8, []int{experts, rows, cols / 2}, codes},
			{"up.weight_scale", safetensors.F8E4M3, []int{experts, rows, cols / 16}, scales}, {"up.weight_scale_2", safetensors.F32, []int{2}, floats32(0.5, 3)},
			{"odd.weight", safetensors.U8, []int{1, 16}, fp4Bytes(8)}, {"odd.weight_scale", safetensors.F8E4M3, []int{1, 2}, []byte{0x38, 0x40}},
			{"odd.weight_scale_2", safetensors.F32, nil, floats32(2)}})
		c, err := Open(dir, Config{Quantization: json.RawMessage(`{"quant_method":"modelopt"}`)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := open()
	factors := c.Factors("up.weight")
	if !slices.Equal(factors, []float32{0.5, 3}) || c.Factors("odd.weight") != nil || c.Factors("none") != nil {
		t.Fatalf("factors %v, %v", factors, c.Factors("odd.weight"))
	}
	for _, span := range [][2]int{{0, experts * rows}, {2, 5}, {4, 4}} {
		blocks, err := c.Codes("up.weight", span[0], span[1])
		if err != nil {
			t.Fatal(err)
		}
		data, err := c.Rows("up.weight", span[0], span[1])
		if err != nil {
			t.Fatal(err)
		}
		want, got := make([]float32, len(data)/4), make([]float32, len(blocks)/36*64)
		tensor.DecodeF32(want, data)
		ggml.NVFP4.Unpack(got, blocks)
		for i := range got {
			got[i] *= factors[(span[0]+i/cols)/rows]
		}
		if !slices.Equal(got, want) {
			t.Errorf("rows %v: %v, want %v", span, got, want)
		}
	}
	if _, err := c.Codes("up.weight", 5, 7); err == nil {
		t.Error("rows beyond the last")
	}
	scales[3*cols/16+2] = 0x80 | 0x38
	if _, err := open().Codes("up.weight", 0, 6); err == nil || !strings.Contains(err.Error(), `"up.weight": row 3: the scale of group 2 is -1`) {
		t.Errorf("%v", err)
	}
}
