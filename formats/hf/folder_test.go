package hf

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/checkpoint"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/safetensors"
)

// renamed gives tensors other names.
func renamed(infos []safetensors.Info, name func(string) string) []safetensors.Info {
	infos = slices.Clone(infos)
	for i := range infos {
		infos[i].Name = name(infos[i].Name)
	}
	return infos
}

// TestRoots: the language model is found under each prefix that checkpoints have for it, and is the same; what is beside
// it is left out, and that is said.
func TestRoots(t *testing.T) {
	s := small("LlamaForCausalLM")
	plain := mustOpen(t, folder(t, s, weights(s)))
	under := func(root string) func(string) string {
		return func(name string) string {
			if rest, ok := strings.CutPrefix(name, "model."); ok {
				return root + rest
			}
			return name
		}
	}
	for _, name := range []func(string) string{
		under("model.language_model."), under("language_model.model."), under(""),
		func(name string) string { return "language_model." + name },
	} {
		infos := renamed(weights(s), name)
		c := mustOpen(t, folder(t, s, infos))
		if len(c.Warnings()) > 0 || len(c.Tensors()) != len(plain.Tensors()) {
			t.Errorf("%s: warnings %q, %d tensors", infos[0].Name, c.Warnings(), len(c.Tensors()))
		}
		for _, info := range plain.Tensors() {
			want, _ := plain.Tensor(info.Name)
			got, err := c.Tensor(info.Name)
			if err != nil || !bytes.Equal(got.Data, want.Data) {
				t.Errorf("%s: %s is another; %v", infos[0].Name, info.Name, err)
			}
		}
	}
	for _, extra := range []string{"vision_tower.blocks.0.w", "model.visual.patch_embed.proj.weight", "multi_modal_projector.linear.bias",
		"model.audio_tower.conv1.weight", "model.embed_vision.embedding.weight"} {
		c := mustOpen(t, folder(t, s, append(weights(s), safetensors.Info{Name: extra, DType: safetensors.BF16, Shape: []int{4, 4}})))
		if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], "left out, such as "+extra) {
			t.Errorf("%s: warnings %q", extra, w)
		}
	}
}

// TestStrays: what is no weight, or not one of the function that the class computes, is named and left out.
func TestStrays(t *testing.T) {
	s := small("LlamaForCausalLM")
	for _, extra := range []safetensors.Info{
		{Name: "model.layers.0.self_attn.k_scale", DType: safetensors.F32},
		{Name: "model.position_ids", DType: safetensors.I64, Shape: []int{1, 8}},
		{Name: "model.layers.0.attention.bias", DType: safetensors.Bool, Shape: []int{1, 1, 8, 8}},
		{Name: "v_head.summary.weight", DType: safetensors.BF16, Shape: []int{1, 32}},
	} {
		c := mustOpen(t, folder(t, s, append(weights(s), extra)))
		if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], extra.Name) {
			t.Errorf("%s: warnings %q", extra.Name, w)
		}
	}
}

// TestHeadAlone: tied weights may be stored under the head's name.
func TestHeadAlone(t *testing.T) {
	s := small("Qwen2ForCausalLM").with(settings{"tie_word_embeddings": true})
	alone := renamed(weights(s), func(name string) string {
		return strings.Replace(name, "model.embed_tokens.weight", "lm_head.weight", 1)
	})
	c := mustOpen(t, folder(t, s, alone))
	if _, err := c.Tensor("output.weight"); err == nil || len(c.Warnings()) > 0 {
		t.Errorf("output.weight is there, or warnings %q", c.Warnings())
	}
	if _, err := arch.Open(c); err != nil {
		t.Error(err)
	}
	delete(s, "tie_word_embeddings")
	if _, err := Open(folder(t, s, alone), Options{}); err == nil || !strings.Contains(err.Error(), `"model.embed_tokens.weight" is missing`) {
		t.Errorf("untied: %v", err)
	}
}

// TestOtherFolders: what is given in a checkpoint's place is named.
func TestOtherFolders(t *testing.T) {
	s := small("LlamaForCausalLM")
	with := func(files map[string]string) string {
		dir := t.TempDir()
		for name, text := range files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o777); err != nil {
				t.Fatal(err)
			}
			write(t, dir, name, []byte(text))
		}
		return dir
	}
	pointer := "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 77\n"
	for _, c := range []struct{ dir, want string }{
		{with(map[string]string{"adapter_config.json": "{}", "adapter_model.safetensors": ""}), "it is the folder of an adapter (adapter_config.json)"},
		{with(map[string]string{"snapshots/abc/config.json": "{}", "refs/main": "abc"}), "the checkpoint lies below, in "},
		{with(map[string]string{"params.json": "{}", "consolidated.safetensors": ""}), "in its maker's own format"},
		{with(map[string]string{configFile: "{}", safetensors.IndexFile: pointer}), safetensors.IndexFile + ": it is a Git LFS pointer"},
		{with(map[string]string{configFile: pointer}), configFile + ": it is a Git LFS pointer for a file of 77 bytes"},
		{with(map[string]string{configFile: "<!DOCTYPE html>"}), configFile + ": it is an HTML page"},
		{with(map[string]string{configFile: string(s.json(t)), safetensors.SingleFile: pointer}), "model.safetensors: it is a Git LFS pointer"},
		{with(map[string]string{configFile: string(s.json(t))}), "holds no weights"},
		{with(nil), configFile},
	} {
		if _, err := Open(c.dir, Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

// TestShardsWithoutIndex: numbered shards need none.
func TestShardsWithoutIndex(t *testing.T) {
	s := small("LlamaForCausalLM")
	dir := folder(t, s, weights(s))
	if err := os.Rename(filepath.Join(dir, safetensors.SingleFile), filepath.Join(dir, "model-00001-of-00001.safetensors")); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, dir)
}

// TestSilentConfig: what config.json does not say is what the transformers library takes, a BOM before it is skipped, and
// without architectures model_type names the class.
func TestSilentConfig(t *testing.T) {
	s := small("LlamaForCausalLM").with(settings{"rms_norm_eps": nil, "max_position_embeddings": nil})
	dir := folder(t, s, weights(s))
	write(t, dir, configFile, append([]byte("\xef\xbb\xbf"), s.with(settings{"architectures": nil, "model_type": "llama"}).json(t)...))
	wantMeta(t, mustOpen(t, dir), map[string]any{"llama.attention.layer_norm_rms_epsilon": float32(1e-6), "llama.context_length": uint32(2048),
		"llama.rope.freq_base": float32(10000), "general.architecture": "llama"})
}

// TestBlocks: of weights in MXFP4 the codes are kept, also where rows change places; what changes values decodes them.
func TestBlocks(t *testing.T) {
	s := small("LlamaForCausalLM").with(settings{"intermediate_size": 64})
	var infos []safetensors.Info
	for _, info := range weights(s) {
		if stem, ok := strings.CutSuffix(info.Name, "_proj.weight"); ok {
			out, in := info.Shape[0], info.Shape[1]
			infos = append(infos, safetensors.Info{Name: stem + "_proj.weight_packed", DType: safetensors.U8, Shape: []int{out, in / 2}},
				safetensors.Info{Name: stem + "_proj.weight_scale", DType: safetensors.U8, Shape: []int{out, in / 32}})
			continue
		}
		infos = append(infos, info)
	}
	dir := folder(t, s, infos)
	c := mustOpen(t, dir)
	raw, err := checkpoint.Open(dir, checkpoint.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	const q = "blk.1.attn_q.weight"
	got, err := c.Tensor(q)
	if err != nil {
		t.Fatal(err)
	}
	if got.Type != ggml.MXFP4 || c.infos[c.index[q]].Type != ggml.MXFP4 {
		t.Fatalf("%s is %s", q, got.Type.Name)
	}
	row := ggml.MXFP4.RowBytes(32)
	stored, err := raw.Rows("model.layers.1.self_attn.q_proj.weight", 0, 32)
	if err != nil {
		t.Fatal(err)
	}
	for r := range 32 { // heads of 8: of the halves 0 to 3 and 4 to 7 in turns
		from := r/8*8 + r%8/2 + r%2*4
		if !bytes.Equal(got.Data[r*row:][:row], stored[from*row:][:row]) {
			t.Errorf("row %d is not row %d of the checkpoint", r, from)
		}
	}
	// A part of the rows is what it is of all.
	some, err := c.Rows(q, 5, 19)
	if err != nil || !bytes.Equal(some.Data, got.Data[5*row:19*row]) {
		t.Errorf("rows 5 to 18 are others; %v", err)
	}

	src := c.sources[c.index[q]]
	changed := *src.Tensor
	changed.Change = func(row []float32, _ int) {
		for i := range row {
			row[i] *= 2
		}
	}
	twice, err := newSource(c.weights, &changed)
	if err != nil || twice.info.Type != ggml.F32 {
		t.Fatalf("type %v; %v", twice.info.Type, err)
	}
	data, err := twice.rows(c.weights, 0, 32)
	if err != nil {
		t.Fatal(err)
	}
	want, have := make([]float32, 32*32), make([]float32, 32*32)
	ggml.MXFP4.Unpack(want, got.Data)
	ggml.F32.Unpack(have, data)
	for i := range want {
		if have[i] != 2*want[i] {
			t.Fatalf("element %d is %g, want %g", i, have[i], 2*want[i])
		}
	}
	// In×out in the checkpoint: columns become rows, in floats.
	transposed, err := newSource(c.weights, &arch.Tensor{Name: "t", Shape: []int{32, 32}, Parts: []arch.Part{
		{Name: "model.layers.1.self_attn.q_proj.weight", Count: 32, Transposed: true, In: 32, Out: 32}}})
	if err != nil || transposed.info.Type != ggml.F32 {
		t.Fatalf("type %v; %v", transposed.info.Type, err)
	}
	if data, err = transposed.rows(c.weights, 0, 32); err != nil {
		t.Fatal(err)
	}
	ggml.MXFP4.Unpack(want, stored)
	ggml.F32.Unpack(have, data)
	for i := range 32 {
		for j := range 32 {
			if have[i*32+j] != want[j*32+i] {
				t.Fatalf("[%d %d] is %g, want %g", i, j, have[i*32+j], want[j*32+i])
			}
		}
	}
}

// TestReads: what is read of the checkpoint for some rows covers all that they are made of, whatever becomes of them.
func TestReads(t *testing.T) {
	s := small("LlamaForCausalLM")
	c := mustOpen(t, folder(t, s, weights(s)))
	const name = "model.layers.0.mlp.up_proj.weight" // 48×32
	part := func(p arch.Part) arch.Part { p.Name = name; return p }
	type span struct{ lo, hi int }
	for what, r := range map[string]struct {
		parts  []arch.Part
		shape  []int
		lo, hi int
		want   []span
	}{
		"all":              {[]arch.Part{part(arch.Part{Count: 48})}, []int{48, 32}, 0, 48, []span{{0, 48}}},
		"some":             {[]arch.Part{part(arch.Part{Count: 20, First: 7})}, []int{20, 32}, 3, 5, []span{{10, 12}}},
		"of two parts":     {[]arch.Part{part(arch.Part{Count: 20}), part(arch.Part{Count: 20, First: 28})}, []int{40, 32}, 10, 25, []span{{10, 20}, {28, 33}}},
		"in other places":  {[]arch.Part{part(arch.Part{Count: 48, Row: func(r int) int { return 47 - r }})}, []int{48, 32}, 0, 10, []span{{38, 48}}},
		"columns":          {[]arch.Part{part(arch.Part{Count: 64, Transposed: true, In: 24, Out: 32})}, []int{2, 32, 24}, 31, 32, []span{{0, 24}}},
		"columns of both":  {[]arch.Part{part(arch.Part{Count: 64, Transposed: true, In: 24, Out: 32})}, []int{2, 32, 24}, 31, 33, []span{{0, 48}}},
		"columns in turns": {[]arch.Part{part(arch.Part{Count: 32, Transposed: true, In: 24, Out: 32, Row: func(r int) int { return 2 * r }})}, []int{2, 16, 24}, 16, 32, []span{{24, 48}}},
	} {
		src, err := newSource(c.weights, &arch.Tensor{Name: what, Shape: r.shape, Parts: r.parts})
		if err != nil {
			t.Fatal(err)
		}
		var got []span
		src.reads(c.weights, r.lo, r.hi, func(n string, lo, hi int) {
			if n != name {
				t.Errorf("%s reads %s", what, n)
			}
			got = append(got, span{lo, hi})
		})
		if !slices.Equal(got, r.want) {
			t.Errorf("%s: rows %v, want %v", what, got, r.want)
		}
	}
}
