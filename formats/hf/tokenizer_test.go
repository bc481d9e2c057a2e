package hf

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/tokenizer"
)

// withTokenizer opens a small checkpoint with other files in its folder. An empty file is removed.
func withTokenizer(t *testing.T, files map[string][]byte, opt Options) (*Checkpoint, error) {
	t.Helper()
	s := small("Qwen2ForCausalLM")
	dir := folder(t, s, weights(s))
	for name, data := range files {
		write(t, dir, name, data)
		if len(data) == 0 {
			os.Remove(dir + "/" + name)
		}
	}
	c, err := Open(dir, opt)
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func splitStep(pattern string) settings {
	return settings{"type": "Split", "pattern": settings{"Regex": pattern}, "behavior": "Isolated", "invert": false}
}

var byteStep = settings{"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}

// The pre-tokenizers as the tokenizer.json of well-known models describe them.
const (
	llama3Regex = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwen2Regex  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

func TestPreTokenizer(t *testing.T) {
	sequence := func(steps ...settings) settings { return settings{"type": "Sequence", "pretokenizers": steps} }
	gpt2 := settings{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}
	for _, c := range []struct {
		pre  settings
		opt  Options
		want string // the name, or part of the error
	}{
		{gpt2, Options{}, "gpt-2"},
		{sequence(splitStep(llama3Regex), byteStep), Options{}, "llama-bpe"},
		{sequence(splitStep(qwen2Regex), byteStep), Options{}, "qwen2"},
		{sequence(splitStep(strings.NewReplacer(`\r`, "\r", `\n`, "\n").Replace(qwen2Regex)), byteStep), Options{},
			"qwen2"},
		{sequence(settings{"type": "Split", "pattern": settings{"Regex": qwen2Regex}, "behavior": "Removed",
			"invert": true}, byteStep),
			Options{}, "qwen2"},
		{sequence(settings{"type": "Digits", "individual_digits": true}, gpt2), Options{}, "smollm"},
		{sequence(settings{"type": "Punctuation", "behavior": "Contiguous"}, gpt2, settings{"type": "Digits",
			"individual_digits": false},
			splitStep("[0-9][0-9][0-9]")), Options{}, "falcon"},
		{sequence(splitStep("[\r\n]"), splitStep(`\s?\p{L}+`), splitStep(`\s?\p{P}+`), splitStep("[一-龥ࠀ-一가-퟿]+"),
			settings{"type": "Digits", "individual_digits": true}, byteStep), Options{}, "deepseek-coder"},

		{sequence(splitStep(`\w+`), byteStep), Options{},
			"pre_tokenizer: these steps are not those of a pre-tokenizer that GGUF " +
				"readers know:\n\t\\w+\nname one that splits alike with --pre: llama-bpe, "},
		{sequence(splitStep(`\w+`), byteStep), Options{Pre: "gpt-2"}, "gpt-2"},
		{gpt2, Options{Pre: "falcon"}, "falcon"},
		{gpt2, Options{Pre: "nonesuch"}, `--pre "nonesuch" is not known; known: llama-bpe, `},
		{sequence(settings{"type": "Split", "pattern": settings{"Regex": qwen2Regex},
			"behavior": "MergedWithPrevious"}, byteStep),
			Options{}, "\tSplit MergedWithPrevious (invert false) (?i:'s"},
		{sequence(settings{"type": "Split", "pattern": settings{"String": "x"}, "behavior": "Isolated"}, byteStep),
			Options{}, "\tString x\n"},
		{sequence(settings{"type": "Punctuation"}, byteStep), Options{}, "\tPunctuation Isolated\n"},
		{sequence(settings{"type": "WhitespaceSplit"}, byteStep), Options{}, "\tWhitespaceSplit\n"},
		{settings{"type": "ByteLevel", "add_prefix_space": true}, Options{},
			"add_prefix_space: is true, which GGUF readers do not do"},
		{settings{"type": "Whitespace"}, Options{},
			"pre_tokenizer: is neither byte-level (Whitespace) nor is there a byte_fallback"},
	} {
		c, want := c, c.want
		ck, err := withTokenizer(t, map[string][]byte{tokenizerFile: bytesTokenizer(t,
			settings{"pre_tokenizer": c.pre})}, c.opt)
		if err != nil {
			if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "tokenizer.json: ") {
				t.Errorf("got %v, want %s", err, want)
			}
			continue
		}
		if got, _ := ck.Meta("tokenizer.ggml.pre"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// ignore_merges decides only where it makes a difference.
func TestIgnoreMerges(t *testing.T) {
	tokenizerWith := func(regex string, ignore, reached bool) []byte {
		var parsed settings
		if err := json.Unmarshal(bytesTokenizer(t, nil), &parsed); err != nil {
			t.Fatal(err)
		}
		m := parsed["model"].(map[string]any)
		m["vocab"].(map[string]any)["ab"] = 257
		m["ignore_merges"] = ignore
		if reached {
			m["merges"] = [][]string{{"a", "b"}}
		}
		return parsed.with(settings{"pre_tokenizer": settings{
			"type": "Sequence", "pretokenizers": []settings{splitStep(regex), byteStep},
		}}).json(t)
	}
	for _, c := range []struct {
		regex           string
		ignore, reached bool
		want            string
	}{
		{llama3Regex, true, true, "llama-bpe"},
		{llama3Regex, true, false, "llama-bpe"},
		{llama3Regex, false, true, "llama-bpe"},
		{llama3Regex, false, false, "smaug-bpe"},
		{qwen2Regex, false, false, "qwen2"},
		{qwen2Regex, true, true, "qwen2"},
		{qwen2Regex, true, false, `merging does not make token 257, "ab"; --pre qwen2 converts it nevertheless`},
	} {
		ck, err := withTokenizer(t, map[string][]byte{tokenizerFile: tokenizerWith(c.regex, c.ignore, c.reached)},
			Options{})
		if err != nil {
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if got, _ := ck.Meta("tokenizer.ggml.pre"); got != c.want {
			t.Errorf("%+v: got %s", c, got)
		}
		if tok, err := tokenizer.New(ck); err != nil {
			t.Error(err)
		} else if _, add := tok.BOS(); add {
			t.Errorf("%+v: BOS is added, of which the files say nothing", c)
		}
	}
}

func TestVocabulary(t *testing.T) {
	c, err := withTokenizer(t, map[string][]byte{
		tokenizerFile: bytesTokenizer(t, settings{"added_tokens": []settings{
			{"id": 0, "content": "<end>", "special": true}, {"id": 257, "content": "<user>", "special": false},
			{"id": 258, "content": "<|im_start|>", "special": false}, {"id": 259, "content": "▁▁", "special": false},
		}}),
		tokenizerConfigFile: settings{
			"eos_token": settings{"content": "<|im_start|>"}, "bos_token": nil, "pad_token": "[none]",
			"added_tokens_decoder": settings{"260": settings{"content": "<tool>", "special": true}},
		}.json(t),
		specialTokensFile: settings{"bos_token": "<end>"}.json(t),
	}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	tokens, _ := c.Meta("tokenizer.ggml.tokens")
	types, _ := c.Meta("tokenizer.ggml.token_type")
	if got := tokens.([]string)[256:263]; !slices.Equal(got, []string{"ÿ", "<user>", "<|im_start|>", "  ", "<tool>",
		"[PAD261]", "[PAD262]"}) {
		t.Errorf("tokens %q", got)
	}
	if got := types.([]int32)[256:263]; !slices.Equal(got, []int32{1, 4, 3, 4, 3, 5, 5}) {
		t.Errorf("types %d", got)
	}
	if types.([]int32)[0] != 3 || len(tokens.([]string)) != 300 || len(types.([]int32)) != 300 {
		t.Errorf("types %d; %d tokens", types, len(tokens.([]string)))
	}
	wantMeta(t, c, map[string]any{
		"tokenizer.ggml.eos_token_id": uint32(258), "tokenizer.ggml.bos_token_id": uint32(0),
		"tokenizer.ggml.padding_token_id": nil, "tokenizer.ggml.unknown_token_id": nil,
		"tokenizer.ggml.add_bos_token": nil, "tokenizer.ggml.add_eos_token": nil, "tokenizer.ggml.scores": nil,
	})
	wantWarning(t, c, `pad_token: "[none]" is not in the vocabulary`)
}

func wantWarning(t *testing.T, c *Checkpoint, want string) {
	t.Helper()
	for _, w := range c.Warnings() {
		if strings.Contains(w, want) {
			return
		}
	}
	t.Errorf("warnings %q, want %s", c.Warnings(), want)
}

func TestBOS(t *testing.T) {
	template := func(kind string, items ...settings) settings {
		return settings{"type": kind, "single": items}
	}
	special := func(token string) settings { return settings{"SpecialToken": settings{"id": token, "type_id": 0}} }
	text := settings{"Sequence": settings{"id": "A", "type_id": 0}}
	for _, c := range []struct {
		post, config settings
		bos, eos     any // nil: the file does not say
	}{
		{nil, settings{"eos_token": "<|end|>"}, nil, nil},
		{template("TemplateProcessing", special("<|end|>"), text), nil, true, nil},
		{template("TemplateProcessing", text, special("<|end|>")), nil, nil, true},
		{template("TemplateProcessing", text), nil, nil, nil},
		{settings{"type": "RobertaProcessing", "cls": []any{"<|end|>", 299}, "sep": []any{"<|end|>", 299}}, nil, true, true},
		{settings{"type": "Sequence", "processors": []settings{{"type": "ByteLevel"}, template("TemplateProcessing",
			special("<|end|>"), text)}},
			nil, true, nil},
		{template("TemplateProcessing", special("<|end|>"), text), settings{"add_bos_token": false,
			"add_eos_token": true}, false, true},
		{nil, settings{"add_bos_token": true}, true, nil},
	} {
		files := map[string][]byte{tokenizerFile: bytesTokenizer(t, settings{"post_processor": c.post})}
		if c.config != nil {
			files[tokenizerConfigFile] = c.config.json(t)
		}
		ck, err := withTokenizer(t, files, Options{})
		if err != nil {
			t.Error(err)
			continue
		}
		wantMeta(t, ck, map[string]any{"tokenizer.ggml.add_bos_token": c.bos, "tokenizer.ggml.add_eos_token": c.eos})
	}
}

func TestBadTokenizer(t *testing.T) {
	model := func(changes settings) []byte {
		var parsed settings
		if err := json.Unmarshal(bytesTokenizer(t, nil), &parsed); err != nil {
			t.Fatal(err)
		}
		m := settings(parsed["model"].(map[string]any)).with(changes)
		return parsed.with(settings{"model": m}).json(t)
	}
	vocab := func(text string) []byte { return model(settings{"vocab": json.RawMessage(text)}) }
	for _, c := range []struct {
		file string
		data []byte
		want string
	}{
		{tokenizerFile, nil, "holds none of tokenizer.json, tokenizer.model, tekken.json, ranks (tiktoken.model, *.tiktoken), " +
			"vocab.json with merges.txt"},
		{tokenizerFile, []byte("[]"), "tokenizer.json: not a JSON object, but of the kind array"},
		{tokenizerFile, []byte("{}"), "tokenizer.json: model: is missing"},
		{tokenizerFile, model(settings{"type": "Unigram"}), `model.type: is "Unigram"; supported: BPE`},
		{tokenizerFile, model(settings{"end_of_word_suffix": "</w>"}), `model.end_of_word_suffix: is "</w>"`},
		{tokenizerFile, model(settings{"vocab": nil}), "model.vocab: is missing"},
		{tokenizerFile, vocab(`[]`), "model.vocab: is [], want an object"},
		{tokenizerFile, vocab(`{"a":"x"}`), `the id of token "a" is not a natural number`},
		{tokenizerFile, vocab(`{"a":-1}`), `the id of token "a" is not a natural number`},
		{tokenizerFile, vocab(`{"a":1,"a":2}`), `token "a" has two ids, 1 and 2`},
		{tokenizerFile, vocab(`{"a":1,"b":1}`), `tokens "a" and "b" have the same id, 1`},
		{tokenizerFile, vocab(`{"a":300}`), `token "a" has id 300, but config.json says vocab_size 300`},
		{tokenizerFile, bytesTokenizer(t, settings{"added_tokens": []settings{{"content": "x"}}}),
			"added_tokens[0].id: is missing"},
		{tokenizerFile, bytesTokenizer(t, settings{"added_tokens": settings{}}),
			"added_tokens: is {}, want a list of objects"},
		{tokenizerFile, model(settings{"merges": nil}), "model.merges: is missing"},
		{tokenizerFile, model(settings{"merges": 1}), "model.merges: is 1, want a list of pairs"},
		{tokenizerFile, model(settings{"merges": []string{"ab"}}), `model.merges: [0] is "ab", want two tokens`},
		{tokenizerFile, model(settings{"merges": [][]string{{"a", "b", "c"}}}),
			`model.merges: [0] is ["a" "b" "c"], want two tokens`},
		{tokenizerFile, model(settings{"merges": []string{"a b"}}),
			`tokenizer.ggml.merges[0]: "ab" is not in the vocabulary`},
		{tokenizerFile, bytesTokenizer(t, settings{"normalizer": settings{"type": "Lowercase"}}),
			`normalizer.type: "Lowercase" with these members is not something GGUF readers do`},
		{tokenizerConfigFile, settings{"eos_token": 1}.json(t),
			"tokenizer_config.json: eos_token: is 1, want an object"},
		{tokenizerConfigFile, settings{"add_bos_token": 1}.json(t),
			"tokenizer_config.json: add_bos_token: is 1, want true or false"},
		{tokenizerConfigFile, settings{"chat_template": 1}.json(t), "chat_template: is 1, want a list of objects"},
		{tokenizerConfigFile, settings{"added_tokens_decoder": settings{"x": settings{}}}.json(t),
			"added_tokens_decoder.x: the key is not a token id"},
		{addedTokensFile, settings{"<x>": 1e9}.json(t), "added_tokens.json: <x>: is 1000000000, want 0 to"},
		{configFile, small("Qwen2ForCausalLM").with(settings{"bos_token_id": "x"}).json(t), `bos_token_id: is "x", want an integer`},
		{tokenizerFile, vocab(`{"a":16777217}`), `the id of token "a" is not a natural number up to 16777216`},
		{tokenizerFile, vocab(`{"a\u0000b":1}`), `token 1 is "a\x00b"; llama.cpp reads a token only up to NUL`},
		{tokenizerFile, []byte("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n"),
			"tokenizer.json: it is a Git LFS pointer for a file of 3 bytes, not the file itself: run git lfs pull"},
		{tokenizerConfigFile, []byte("<!DOCTYPE html>\n<html>"), "tokenizer_config.json: it is an HTML page"},
		{chatTemplateFile, []byte("Entry not found"), "chat_template.jinja: it is a hub's answer in place of the file: \"Entry not found\""},
		{tokenizerConfigFile, []byte(`{"add_bos_token": NaN}`), `add_bos_token: is "NaN", want true or false`},
		{tokenizerConfigFile, []byte(`{"model_max_length": Nan}`), "tokenizer_config.json: not a JSON object: invalid character"},
	} {
		_, err := withTokenizer(t, map[string][]byte{c.file: c.data}, Options{})
		if err == nil || !strings.HasPrefix(err.Error(), "hf: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	_, err := withTokenizer(t, map[string][]byte{
		tokenizerConfigFile: settings{"add_bos_token": true}.json(t),
		configFile:          small("Qwen2ForCausalLM").with(settings{"bos_token_id": nil}).json(t),
	}, Options{})
	if err == nil || !strings.Contains(err.Error(), "a BOS token is to be added to every text, but none is named") {
		t.Errorf("got %v", err)
	}
}

// A list of tokens that end a text gives the first.
func TestSeveralEOS(t *testing.T) {
	c, err := withTokenizer(t, map[string][]byte{
		configFile: small("Qwen2ForCausalLM").with(settings{"eos_token_id": []int{7, 8}}).json(t),
	}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantMeta(t, c, map[string]any{"tokenizer.ggml.eos_token_id": uint32(7)})
}

// sentencePieceModel encodes tokenizer.model.
func sentencePieceModel(pieces []piece, modelType uint64, dummyPrefix bool) []byte {
	var model []byte
	for _, p := range pieces {
		var b []byte
		b = protowire.AppendString(protowire.AppendTag(b, pieceText, protowire.BytesType), p.text)
		b = protowire.AppendFixed32(protowire.AppendTag(b, pieceScore, protowire.Fixed32Type),
			math.Float32bits(p.score))
		b = protowire.AppendVarint(protowire.AppendTag(b, pieceType, protowire.VarintType), uint64(p.typ))
		model = protowire.AppendBytes(protowire.AppendTag(model, modelPieces, protowire.BytesType), b)
	}
	trainer := protowire.AppendVarint(protowire.AppendTag(nil, trainerModelType, protowire.VarintType), modelType)
	trainer = protowire.AppendVarint(protowire.AppendTag(trainer, 43, protowire.VarintType),
		math.MaxUint64) // pad_id −1
	model = protowire.AppendBytes(protowire.AppendTag(model, modelTrainer, protowire.BytesType), trainer)
	normalizer := protowire.AppendVarint(protowire.AppendTag(nil, normalizerDummyPrefix, protowire.VarintType),
		protowire.EncodeBool(dummyPrefix))
	normalizer = protowire.AppendVarint(protowire.AppendTag(normalizer, normalizerExtraSpaces, protowire.VarintType), 0)
	return protowire.AppendBytes(protowire.AppendTag(model, modelNormalizer, protowire.BytesType), normalizer)
}

// tinyPieces is a SentencePiece vocabulary in which each token can be made in all the ways that there are.
func tinyPieces() []piece {
	pieces := []piece{{"<unk>", 0, tokenizer.Unknown}, {"<s>", 0, tokenizer.Control}, {"</s>", 0, tokenizer.Control}}
	for i := range 256 {
		pieces = append(pieces, piece{fmt.Sprintf("<0x%02X>", i), 0, tokenizer.Byte})
	}
	for i, text := range []string{"▁t", "he", "▁the", "in", "▁i", "▁in", "th", "the", "▁", "t", "h", "e", "i", "n"} {
		pieces = append(pieces, piece{text, -float32(i), tokenizer.Normal})
	}
	return pieces
}

// asMerges makes of SentencePiece's pieces what Hugging Face's converter makes: the vocabulary, and every pair of
// pieces that makes a piece, by falling score.
func asMerges(t testing.TB, pieces []piece) []byte {
	t.Helper()
	vocab := make(map[string]int, len(pieces))
	var made []int
	for id, p := range pieces {
		vocab[p.text] = id
		if p.typ == tokenizer.Normal {
			made = append(made, id)
		}
	}
	slices.SortStableFunc(made, func(a, b int) int { return int(pieces[b].score) - int(pieces[a].score) })
	merges := [][]string{}
	for _, id := range made {
		text := pieces[id].text
		for i := range text {
			_, left := vocab[text[:i]]
			if _, right := vocab[text[i:]]; left && right {
				merges = append(merges, []string{text[:i], text[i:]})
			}
		}
	}
	return settings{
		"model": settings{"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": true, "unk_token": "<unk>"},
		"normalizer": settings{"type": "Sequence", "normalizers": []settings{
			{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": settings{"String": " "},
				"content": "▁"},
		}},
		"added_tokens": []settings{
			{"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true},
			{"id": 2, "content": "</s>", "special": true},
		},
	}.json(t)
}

func TestSentencePiece(t *testing.T) {
	pieces := tinyPieces()
	llamaConfig := small("LlamaForCausalLM").with(settings{"bos_token_id": 1, "eos_token_id": 2}).json(t)
	var toks []*tokenizer.Tokenizer
	for _, files := range []map[string][]byte{
		{tokenizerFile: nil, sentencePieceFile: sentencePieceModel(pieces, modelTypeBPE, true)},
		{tokenizerFile: asMerges(t, pieces)},
		{tokenizerFile: asMerges(t, pieces), sentencePieceFile: sentencePieceModel(pieces, modelTypeBPE, true)},
		{tokenizerFile: []byte(`{"model":{"type":"Unigram"}}`), sentencePieceFile: sentencePieceModel(pieces, modelTypeBPE, true)},
	} {
		s := small("LlamaForCausalLM")
		dir := folder(t, s, weights(s))
		files[configFile] = llamaConfig
		for name, data := range files {
			write(t, dir, name, data)
			if data == nil {
				os.Remove(dir + "/" + name)
			}
		}
		c := mustOpen(t, dir)
		wantMeta(t, c, map[string]any{
			"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": nil, "tokenizer.ggml.add_bos_token": nil,
			"tokenizer.ggml.add_eos_token": nil, "tokenizer.ggml.bos_token_id": uint32(1),
			"tokenizer.ggml.eos_token_id": uint32(2),
		})
		unknown := int32(tokenizer.Unknown)
		if len(files[sentencePieceFile]) == 0 || len(files[tokenizerFile]) > 100 { // <unk> is an added token there, too
			unknown = int32(tokenizer.Control)
		}
		types, _ := c.Meta("tokenizer.ggml.token_type")
		if got := types.([]int32); !slices.Equal(got[:4], []int32{unknown, 3, 3, 6}) || got[259] != 1 || got[299] != 5 {
			t.Errorf("types %d", got)
		}
		tok, err := tokenizer.New(c)
		if err != nil {
			t.Fatal(err)
		}
		toks = append(toks, tok)
		if _, err := Open(dir, Options{Pre: "gpt-2"}); err == nil || !strings.Contains(err.Error(), "leave out --pre") {
			t.Errorf("--pre: %v", err)
		}
	}
	for _, text := range []string{"the inn", "then", "  tithe\n", "é", ""} {
		want := toks[0].Encode(text, tokenizer.EncodeOptions{})
		for _, tok := range toks[1:] {
			if got := tok.Encode(text, tokenizer.EncodeOptions{}); !slices.Equal(got, want) {
				t.Errorf("%q: got %d, want %d", text, got, want)
			}
		}
	}
	if got := toks[0].Encode("the inn", tokenizer.EncodeOptions{}); !slices.Equal(got, []int32{1, 261, 264, 272}) {
		t.Errorf("got %d", got)
	}
}

func TestBadSentencePiece(t *testing.T) {
	pieces := tinyPieces()
	good := sentencePieceModel(pieces, modelTypeBPE, true)
	long := append(slices.Clone(pieces), make([]piece, 40)...)
	for i := range long {
		if long[i].typ == 0 {
			long[i] = piece{fmt.Sprintf("x%d", i), 0, tokenizer.Normal}
		}
	}
	for _, c := range []struct {
		data []byte
		want string
	}{
		{[]byte("# ranks\nIQ== 0\n"), "tokenizer.model: not a SentencePiece model: "},
		{[]byte{0x12, 0x00}, "not a SentencePiece model: no pieces"},
		{good[:len(good)/2], "not a SentencePiece model: field 1: "},
		{sentencePieceModel(pieces, modelTypeUnigram, true), "model_type is 1; supported: 2 (BPE)"},
		{sentencePieceModel([]piece{{"a", 0, 9}}, modelTypeBPE, true), "piece 0: type 9"},
		{sentencePieceModel(long, modelTypeBPE, true), `token "x300" has id 300, but config.json says vocab_size 300`},
		{sentencePieceModel([]piece{{"a", 0, 1}, {"a", 0, 1}}, modelTypeBPE, true), `"a" has two ids, 0 and 1`},
		{sentencePieceModel(append([]piece{{"a", float32(math.NaN()), 1}}, pieces...), modelTypeBPE, true),
			"tokenizer.ggml.scores[0] is NaN"},
		{sentencePieceModel(append([]piece{{"a\x00", 0, 1}}, pieces...), modelTypeBPE, true),
			`token 0 is "a\x00"; llama.cpp reads a token only up to NUL`},
		{sentencePieceModel(append(slices.Clone(pieces[:4]), pieces[5:]...), modelTypeBPE, true),
			"1 of 256 bytes have no token (byte_fallback): llama.cpp aborts"},
		{[]byte("version https://git-lfs.github.com/spec/v1\n"), "tokenizer.model: it is a Git LFS pointer"},
	} {
		_, err := withTokenizer(t, map[string][]byte{tokenizerFile: nil, sentencePieceFile: c.data}, Options{})
		if err == nil || !strings.HasPrefix(err.Error(), "hf: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}

	var parsed settings
	if err := json.Unmarshal(asMerges(t, pieces), &parsed); err != nil {
		t.Fatal(err)
	}
	merges := parsed["model"].(map[string]any)["merges"].([]any)
	for _, c := range []struct {
		merges []any
		want   string
	}{
		{merges[1:], `model.merges: "▁t" can be made in 1 ways, of which 0 are merges`},
		{append([]any{[]string{"▁t", "he"}}, merges...), `model.merges[3]: "▁the" is merged at two ranks`},
		{slices.Delete(slices.Clone(merges), 2, 3), `model.merges: "▁the" can be made in`},
		{[]any{[]string{"t", "t"}}, `model.merges[0]: "tt" is not in the vocabulary`},
	} {
		parsed["model"].(map[string]any)["merges"] = c.merges
		_, err := withTokenizer(t, map[string][]byte{tokenizerFile: parsed.json(t)}, Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

// Llama 2's vocabulary, by way of tokenizer.model and by way of tokenizer.json's merges, gives llama.cpp's ids.
func TestLlama2Shared(t *testing.T) {
	path := shared.Path(t, "vocab/ggml-vocab-llama-spm.gguf")
	file, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	get := func(key string) any { v, _ := file.Meta(key); return v }
	var pieces []piece
	for i, token := range get("tokenizer.ggml.tokens").([]string) {
		pieces = append(pieces, piece{token, get("tokenizer.ggml.scores").([]float32)[i],
			tokenizer.Type(get("tokenizer.ggml.token_type").([]int32)[i])})
	}
	input, err := os.ReadFile(path + ".inp")
	if err != nil {
		t.Fatal(err)
	}
	output, err := os.ReadFile(path + ".out")
	if err != nil {
		t.Fatal(err)
	}
	model, err := parseSentencePiece("tokenizer.model", sentencePieceModel(pieces, modelTypeBPE, true))
	if err != nil {
		t.Fatal(err)
	}
	merged, err := parseTokenizerJSON("tokenizer.json", asMerges(t, pieces))
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range []string{"tokenizer.model", "tokenizer.json"} {
		c := &Checkpoint{}
		if way == "tokenizer.model" {
			_, err = c.loadSentencePiece(&tokenizerFiles{model: model}, tokenizerModel{})
		} else {
			_, err = c.loadMergedSPM(&tokenizerFiles{bpe: merged, added: merged.added}, tokenizerModel{})
		}
		if err != nil {
			t.Fatalf("%s: %v", way, err)
		}
		tok, err := tokenizer.New(c)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Split(string(output), "\n")
		for i, text := range strings.Split(string(input), "\n__ggml_vocab_test__\n") {
			got := strings.Trim(fmt.Sprint(tok.Encode(text, tokenizer.EncodeOptions{NoBOS: true})), "[]")
			if got != strings.TrimSpace(want[i]) {
				t.Errorf("%s: %q:\n got %s\nwant %s", way, text, got, want[i])
			}
		}
	}
}
