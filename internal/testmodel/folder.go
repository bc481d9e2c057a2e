package testmodel

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/tensor"
)

// The vocabulary: 256 bytes, the merges' results, and the special tokens. Its size is odd.
const (
	bosID     = 256 + 20
	eosID     = bosID + 1
	vocabSize = bosID + 3
)

// merges are worth having for English and for Go; "Ġ" is GPT-2's letter for the space byte.
var merges = strings.Split("t h|th e|i n|e r|Ġ t|Ġ the|o n|r e|Ġ a|a n|an d|Ġ Ġ|ĠĠ ĠĠ|f u|n c|fu nc|Ċ Ċ|s t|in g|e n", "|")

var special = []string{"<|begin|>", "<|end|>", "<|pad|>"}

// byteTokens are GPT-2's printable stand-ins for the 256 bytes, in the order of its vocabulary: first the printable
// bytes, then the others, which become the letters from U+0100 on.
func byteTokens() []string {
	printable := func(b int) bool {
		return '!' <= b && b <= '~' || 0xa1 <= b && b <= 0xac || 0xae <= b && b <= 0xff
	}
	var first, rest []string
	for b := range 256 {
		if printable(b) {
			first = append(first, string(rune(b)))
		} else {
			rest = append(rest, string(rune(0x100+len(rest))))
		}
	}
	return append(first, rest...)
}

// vocabulary lists the tokens by id.
func vocabulary() []string {
	v := byteTokens()
	for _, m := range merges {
		v = append(v, strings.ReplaceAll(m, " ", ""))
	}
	if v = append(v, special...); len(v) != vocabSize {
		panic(fmt.Sprintf("testmodel: %d tokens", len(v)))
	}
	return v
}

// pattern is the pre-tokenizer's regular expression: Llama 3's, or Qwen 2's, which splits digits one by one.
func (m *Model) pattern() (regex, pre string) {
	digits, pre := `\p{N}{1,3}`, "llama-bpe"
	if strings.HasPrefix(m.Config.ModelType, "qwen") {
		digits, pre = `\p{N}`, "qwen2"
	}
	return `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|` + digits +
		`| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`, pre
}

// tokenizerKV adds the tokenizer as GGUF has it.
func (m *Model) tokenizerKV(kv *gguf.Metadata) {
	const normal, control = 1, 3 // llama.cpp's enum llama_token_type
	types := make([]int32, vocabSize)
	for i := range types {
		types[i] = normal
		if i >= bosID {
			types[i] = control
		}
	}
	_, pre := m.pattern()
	kv.Set("tokenizer.ggml.model", "gpt2")
	kv.Set("tokenizer.ggml.pre", pre)
	kv.Set("tokenizer.ggml.tokens", vocabulary())
	kv.Set("tokenizer.ggml.token_type", types)
	kv.Set("tokenizer.ggml.merges", merges)
	kv.Set("tokenizer.ggml.bos_token_id", uint32(bosID))
	kv.Set("tokenizer.ggml.eos_token_id", uint32(eosID))
	kv.Set("tokenizer.ggml.add_bos_token", m.family().addBOS)
}

// WriteFolder writes the model as a Hugging Face folder: config.json, the tokenizer's files, and two shards with their
// index. dir must exist.
func (m *Model) WriteFolder(dir string) error {
	type object = map[string]any
	regex, _ := m.pattern()
	vocab := object{}
	for id, tok := range vocabulary()[:bosID] {
		vocab[tok] = id
	}
	var added []object
	for i, tok := range special {
		added = append(added, object{"id": bosID + i, "content": tok, "single_word": false, "lstrip": false,
			"rstrip": false, "normalized": false, "special": true})
	}
	byteLevel := object{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
	post := byteLevel
	if m.family().addBOS {
		bos := object{"SpecialToken": object{"id": special[0], "type_id": 0}}
		post = object{
			"type":   "TemplateProcessing",
			"single": []any{bos, object{"Sequence": object{"id": "A", "type_id": 0}}},
			"pair": []any{bos, object{"Sequence": object{"id": "A", "type_id": 0}},
				object{"Sequence": object{"id": "B", "type_id": 1}}},
			"special_tokens": object{special[0]: object{"id": special[0], "ids": []int{bosID}, "tokens": special[:1]}},
		}
	}
	files := map[string]any{
		"config.json":            m.configJSON(),
		"generation_config.json": object{"bos_token_id": bosID, "eos_token_id": eosID},
		"tokenizer_config.json": object{
			"bos_token": special[0], "eos_token": special[1], "pad_token": special[2],
			"add_bos_token": m.family().addBOS, "tokenizer_class": "PreTrainedTokenizerFast",
			"model_max_length": m.library().context,
		},
		"tokenizer.json": object{
			"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": added, "normalizer": nil,
			"pre_tokenizer": object{"type": "Sequence", "pretokenizers": []any{
				object{"type": "Split", "pattern": object{"Regex": regex}, "behavior": "Isolated", "invert": false},
				byteLevel,
			}},
			"post_processor": post,
			"decoder":        object{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
			"model": object{"type": "BPE", "dropout": nil, "unk_token": nil, "continuing_subword_prefix": nil,
				"end_of_word_suffix": nil, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges},
		},
	}
	half := len(m.Tensors) / 2
	weights := map[string]string{}
	total := 0
	for i, shard := range [][]Tensor{m.Tensors[:half], m.Tensors[half:]} {
		name := fmt.Sprintf("model-%05d-of-00002.safetensors", i+1)
		for _, t := range shard {
			weights[t.Name] = name
			total += 2 * len(t.Data)
		}
		if err := os.WriteFile(filepath.Join(dir, name), shardBytes(shard), 0o644); err != nil {
			return err
		}
	}
	files["model.safetensors.index.json"] = object{"metadata": object{"total_size": total}, "weight_map": weights}
	for name, v := range files {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// shardBytes is a safetensors file: the length of the header, the header, the data.
func shardBytes(ts []Tensor) []byte {
	header := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
	var data []byte
	for _, t := range ts {
		start := len(data)
		data = append(data, make([]byte, 2*len(t.Data))...)
		tensor.EncodeBF16(data[start:], t.Data)
		header[t.Name] = map[string]any{"dtype": "BF16", "shape": t.Shape, "data_offsets": []int{start, len(data)}}
	}
	h, err := json.Marshal(header)
	if err != nil {
		panic(err) // maps of strings and numbers always marshal
	}
	h = append(h, strings.Repeat(" ", (8-len(h)%8)%8)...)
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(h))), h...), data...)
}
