package hf

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/tokenizer"
)

// What a GGUF cannot hold or its readers cannot do is said, and hurts nobody.
func TestTokenizerWarnings(t *testing.T) {
	qwen := small("Qwen2ForCausalLM")
	for _, c := range []struct {
		file string
		data []byte
		want string
		meta map[string]any
	}{
		{tokenizerFile, bytesTokenizer(t, settings{"added_tokens": []settings{
			{"id": 299, "content": "<in>"}, {"id": 300, "content": "<x>"}, {"id": 301, "content": "<y>"}}}),
			`added tokens "<x>" (300), "<y>" (301) are left out: the embeddings have 300 rows`, nil},
		{addedTokensFile, settings{"<a>": 300, "<b>": 301, "<c>": 302, "<d>": 303, "<e>": 304}.json(t),
			`added tokens "<a>" (300), "<b>" (301), "<c>" (302) and 2 more are left out`, nil},
		{tokenizerFile, bytesTokenizer(t, settings{"added_tokens": []settings{{"id": 299, "content": "a"}}}),
			`added token "a" has id 299, but the vocabulary has it as `, nil},
		{tokenizerFile, bytesTokenizer(t, settings{"added_tokens": []settings{{"id": 270, "content": "<tool>", "lstrip": true}}}),
			`added tokens "<tool>" take the spaces beside them (lstrip, rstrip)`, nil},
		{tokenizerFile, bytesTokenizer(t, settings{"normalizer": settings{"type": "NFC"}}), "NFC is left out", nil},
		{tokenizerConfigFile, settings{"eos_token": "<none>"}.json(t), `eos_token: "<none>" is not in the vocabulary; left out`, nil},
		{tokenizerConfigFile, settings{"add_prefix_space": true}.json(t), "add_prefix_space: is true, which GGUF readers do not do", nil},
		{configFile, qwen.with(settings{"pad_token_id": 300}).json(t), "pad_token_id: is 300, but there are 300 tokens; left out",
			map[string]any{"tokenizer.ggml.padding_token_id": nil}},
		{configFile, qwen.with(settings{"eos_token_id": []int{300, 7}}).json(t), "eos_token_id: is 300, but there are 300 tokens",
			map[string]any{"tokenizer.ggml.eos_token_id": uint32(7)}},
		{generationFile, []byte("{"), "generation_config.json: not a JSON object", nil},
		{generationFile, []byte(`{"do_sample": 1}`), "generation_config.json: do_sample: is 1, want true or false; left out", nil},
		{generationFile, []byte(`{"temperature": NaN, "top_k": 5}`), `temperature: is "NaN", want a number; left out`,
			map[string]any{"general.sampling.top_k": int32(5), "general.sampling.temp": nil}},
		{tokenizerFile, bytesTokenizer(t, settings{"post_processor": settings{"type": "TemplateProcessing", "single": []settings{
			{"SpecialToken": settings{"id": "<|end|>"}}, {"SpecialToken": settings{"id": "<|end|>"}}, {"Sequence": settings{"id": "A"}}}}}),
			"post_processor: 2 tokens go before every text; GGUF readers put only the first there", nil},
	} {
		ck, err := withTokenizer(t, map[string][]byte{c.file: c.data}, Options{})
		if err != nil {
			t.Errorf("%s: %v", c.want, err)
			continue
		}
		wantWarning(t, ck, c.want)
		wantMeta(t, ck, c.meta)
	}

	// What json.dumps of Python writes for floats does no harm where it is not read (of config.json, names with an underscore).
	ck, err := withTokenizer(t, map[string][]byte{
		configFile:          []byte(strings.Replace(string(qwen.json(t)), "{", `{"_a":Infinity,"_b":[-Infinity,"NaN\"Infinity"],`, 1)),
		tokenizerConfigFile: []byte(`{"model_max_length": Infinity}`),
	}, Options{})
	if err != nil || len(ck.Warnings()) > 0 {
		t.Errorf("Infinity: %v, warnings %q", err, ck.Warnings())
	}
}

func TestSentencePieceWarnings(t *testing.T) {
	model := sentencePieceModel(tinyPieces(), modelTypeBPE, true)
	trainer := protowire.AppendVarint(protowire.AppendTag(nil, trainerModelType, protowire.VarintType), modelTypeBPE)
	trainer = protowire.AppendVarint(protowire.AppendTag(trainer, trainerSuffix, protowire.VarintType), 1)
	model = protowire.AppendBytes(protowire.AppendTag(model, modelTrainer, protowire.BytesType), trainer)
	normalizer := protowire.AppendVarint(protowire.AppendTag(nil, normalizerEscape, protowire.VarintType), 0)
	normalizer = protowire.AppendVarint(protowire.AppendTag(normalizer, normalizerExtraSpaces, protowire.VarintType), 0)
	model = protowire.AppendBytes(protowire.AppendTag(model, modelNormalizer, protowire.BytesType), normalizer)
	s, err := parseSentencePiece("tokenizer.model", model)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"tokenizer.model: treat_whitespace_as_suffix, which puts spaces after words, is left out: GGUF readers do not do it",
		"tokenizer.model: escape_whitespaces: false is left out: GGUF readers do not do it",
	}
	if !slices.Equal(s.warnings, want) {
		t.Errorf("got %q, want %q", s.warnings, want)
	}
}

// loadTiny loads the tokenizer of a folder of a few files for a class.
func loadTiny(t *testing.T, m tokenizerModel, files map[string][]byte) *Checkpoint {
	t.Helper()
	c := &Checkpoint{dir: t.TempDir()}
	for name, data := range files {
		write(t, c.dir, name, data)
	}
	if m.config == nil {
		m.config = object.New(configFile)
	}
	n, err := c.loadTokenizer(m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if tokens, _ := c.Meta("tokenizer.ggml.tokens"); n != len(tokens.([]string)) {
		t.Errorf("%d tokens are %d", len(tokens.([]string)), n)
	}
	return c
}

// What llama.cpp's converter knows of a class beyond what its files say.
func TestFamilies(t *testing.T) {
	special := func(tokens ...string) settings {
		var added []settings
		for i, token := range tokens {
			added = append(added, settings{"id": 260 + i, "content": token, "special": true})
		}
		return settings{"added_tokens": added}
	}
	id := func(kind string) string { return specialKey(kind) }
	object := func(s settings) *object.Object {
		o, err := object.Parse(configFile, s.json(t))
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	for _, c := range []struct {
		m     tokenizerModel
		files map[string][]byte
		want  map[string]any
	}{
		{tokenizerModel{quirks: arch.TokenizerOf("Glm4ForCausalLM")}, map[string][]byte{
			tokenizerFile: bytesTokenizer(t, special("<|endoftext|>", "<|user|>"))},
			map[string]any{id("bos"): uint32(260), id("eos"): uint32(260), id("unk"): uint32(260), id("eot"): uint32(261)}},
		{tokenizerModel{quirks: arch.TokenizerOf("Glm4MoeForCausalLM")}, map[string][]byte{
			tokenizerFile: bytesTokenizer(t, special("<|endoftext|>", "<|user|>", "[gMASK]", "<|observation|>"))},
			map[string]any{id("bos"): uint32(262), id("eos"): nil, id("eot"): uint32(261), id("eom"): uint32(263)}},
		{tokenizerModel{quirks: arch.TokenizerOf("HunYuanDenseV1ForCausalLM"), config: object(settings{"eod_token_id": 261, "eos_token_id": 260})},
			map[string][]byte{tokenizerFile: bytesTokenizer(t, special("<|endoftext|>", "<|eos|>")),
				generationFile: settings{"eos_token_id": []int{260, 261}}.json(t)},
			map[string]any{id("eos"): uint32(261), id("eot"): uint32(260)}},
		{tokenizerModel{quirks: arch.TokenizerOf("InternLM2ForCausalLM")}, map[string][]byte{
			sentencePieceFile: sentencePieceModel(append(tinyPieces(), piece{"\x00", 0, 1}, piece{"[UNUSED_TOKEN_1]", 0, 1},
				piece{"<|im_end|>", 0, 1}), modelTypeBPE, true),
			tokenizerConfigFile: settings{"added_tokens_decoder": settings{"275": settings{"content": "<|im_end|>", "special": true}}}.json(t)},
			map[string]any{id("eos"): uint32(275), "tokenizer.ggml.add_space_prefix": true}},
		{tokenizerModel{quirks: arch.TokenizerOf("GemmaForCausalLM")}, map[string][]byte{
			sentencePieceFile: sentencePieceModel(tinyPieces(), modelTypeBPE, false)},
			map[string]any{id("eot"): uint32(107), "tokenizer.ggml.add_space_prefix": false}},
		{tokenizerModel{quirks: arch.TokenizerOf("LlamaForCausalLM")}, map[string][]byte{
			tokenizerFile: bytesTokenizer(t, nil), tokenizerConfigFile: settings{"add_prefix_space": false}.json(t)},
			map[string]any{"tokenizer.ggml.add_space_prefix": false}},
		{tokenizerModel{quirks: arch.TokenizerOf("Qwen3ForCausalLM"), config: object(settings{"text_config": settings{"pad_token_id": 3}})},
			map[string][]byte{tokenizerFile: bytesTokenizer(t, nil), tokenizerConfigFile: settings{"add_prefix_space": false}.json(t)},
			map[string]any{"tokenizer.ggml.add_space_prefix": nil, id("pad"): uint32(3)}},
		{tokenizerModel{quirks: arch.TokenizerOf("LlamaForCausalLM"), vocab: 32016}, map[string][]byte{
			tokenizerFile: bytesTokenizer(t, nil)}, map[string]any{id("eot"): uint32(32010)}},
		{tokenizerModel{quirks: arch.TokenizerOf("HunYuanMoEV1ForCausalLM")}, map[string][]byte{"hy.tiktoken": ranksText(tinyRanks())},
			map[string]any{id("bos"): uint32(127959), "tokenizer.ggml.pre": "hunyuan"}},
	} {
		wantMeta(t, loadTiny(t, c.m, c.files), c.want)
	}
}

// gemmaTokenizer is tokenizer.json of Gemma's kind: ▁ for spaces, none before the text, and a Split that finds nothing.
func gemmaTokenizer(t testing.TB, changes settings) []byte {
	vocab := map[string]int{"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}
	for _, p := range tinyPieces()[3:] {
		vocab[p.text] = len(vocab)
	}
	vocab["\n"], vocab["\n\n"], vocab["<|tool_call>"] = len(vocab), len(vocab)+1, len(vocab)+2
	return settings{
		"model": settings{"type": "BPE", "vocab": vocab, "byte_fallback": true, "unk_token": "<unk>", "merges": [][]string{
			{"\n", "\n"}, {"▁", "t"}, {"h", "e"}, {"▁t", "he"}, {"▁", "the"}, {"i", "n"}, {"▁", "i"}, {"▁", "in"}, {"▁i", "n"}, {"t", "h"},
			{"th", "e"}, {"t", "he"}}},
		"normalizer":    settings{"type": "Replace", "pattern": settings{"String": " "}, "content": "▁"},
		"pre_tokenizer": settings{"type": "Split", "pattern": settings{"String": " "}, "behavior": "MergedWithPrevious", "invert": false},
		"added_tokens": []settings{{"id": 0, "content": "<pad>", "special": true}, {"id": 1, "content": "<eos>", "special": true},
			{"id": 2, "content": "<bos>", "special": true}, {"id": 3, "content": "<unk>", "special": true},
			{"id": 274, "content": "\n", "special": false}, {"id": 275, "content": "\n\n", "special": false},
			{"id": 276, "content": "<|tool_call>", "special": true}},
	}.with(changes).json(t)
}

// Gemma 3 and 4 have the same tokenizer.json, of which one becomes a vocabulary with scores, the other one with merges.
func TestGemmaTokenizers(t *testing.T) {
	config := settings{"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}.json(t)
	files := map[string][]byte{tokenizerFile: gemmaTokenizer(t, nil), tokenizerConfigFile: config}
	three := loadTiny(t, tokenizerModel{quirks: arch.TokenizerOf("Gemma3ForCausalLM")}, files)
	four := loadTiny(t, tokenizerModel{quirks: arch.TokenizerOf("Gemma4ForCausalLM")}, files)
	wantMeta(t, three, map[string]any{"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
		"tokenizer.ggml.add_space_prefix": false, "tokenizer.ggml.merges": nil})
	wantMeta(t, four, map[string]any{"tokenizer.ggml.model": "gemma4", "tokenizer.ggml.pre": nil,
		"tokenizer.ggml.add_space_prefix": false, "tokenizer.ggml.add_bos_token": true,
		"tokenizer.ggml.bos_token_id": uint32(2), "tokenizer.ggml.unknown_token_id": uint32(3)})
	types, _ := four.Meta("tokenizer.ggml.token_type")
	if got := types.([]int32); got[0] != 3 || got[4] != 6 || got[260] != 1 || got[274] != 4 || got[276] != 4 {
		t.Errorf("types %d", got)
	}
	a, err := tokenizer.New(three)
	if err != nil {
		t.Fatal(err)
	}
	b, err := tokenizer.New(four)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"the inn", " the\n\n\n in", "é  t", ""} {
		got, want := b.Encode(text, tokenizer.EncodeOptions{}), a.Encode(text, tokenizer.EncodeOptions{})
		if !slices.Equal(got, want) {
			t.Errorf("%q: %d with merges, %d with scores", text, got, want)
		}
	}

	for _, c := range []struct {
		class   string
		changes settings
		want    string
	}{
		{"Gemma4ForCausalLM", settings{"normalizer": nil, "pre_tokenizer": nil}, "normalizer: puts a space before the text, or leaves spaces as they are"},
		{"Gemma4ForCausalLM", settings{"normalizer": nil, "pre_tokenizer": settings{"type": "Metaspace"}}, "pre_tokenizer: Metaspace split"},
		{"Gemma3ForCausalLM", settings{"pre_tokenizer": settings{"type": "Whitespace"}}, "pre_tokenizer: Whitespace: GGUF readers do not do this"},
	} {
		ck := &Checkpoint{dir: t.TempDir()}
		write(t, ck.dir, tokenizerFile, gemmaTokenizer(t, c.changes))
		_, err := ck.loadTokenizer(tokenizerModel{quirks: arch.TokenizerOf(c.class)}, Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	// Ids that leave most of the vocabulary empty would make a small file a large one.
	ck := &Checkpoint{dir: t.TempDir()}
	write(t, ck.dir, tokenizerFile, bytesTokenizer(t, settings{"added_tokens": []settings{{"id": 1 << 24, "content": "x"}}}))
	if _, err := ck.loadTokenizer(tokenizerModel{}, Options{}); err == nil || !strings.Contains(err.Error(), "ids go up to 16777216, but there are only") {
		t.Errorf("got %v", err)
	}
}
