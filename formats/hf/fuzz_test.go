package hf

import (
	"runtime"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/tokenizer"
)

// FuzzConfig: what config.json may say either is an error or describes tensors of the sizes that the checkpoint has.
func FuzzConfig(f *testing.F) {
	base := small("LlamaForCausalLM").with(settings{"attention_bias": true, "mlp_bias": true})
	for _, class := range arch.Classes() {
		f.Add(small(class).json(f))
	}
	f.Add(base.json(f))
	f.Add(base.with(settings{"rope_parameters": settings{"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
		"high_freq_factor": 4, "original_max_position_embeddings": 64}}).json(f))
	f.Add(small("Qwen3ForCausalLM").with(settings{"head_dim": 8, "rope_scaling": settings{"type": "yarn", "factor": 2,
		"mscale": 1, "mscale_all_dim": 2}}).json(f))
	f.Add([]byte(`{"architectures":["LlamaForCausalLM"],"hidden_size":1e99,"vocab_size":"x","rope_scaling":[]}`))
	f.Add([]byte(`{"architectures":["LlamaForCausalLM"],"hidden_size":1048576,"num_hidden_layers":16384}`))
	f.Add([]byte(`{"architectures":["Qwen3MoeForCausalLM"],"hidden_size":32,"num_hidden_layers":256,"num_attention_heads":4,` +
		`"num_experts":16384,"num_experts_per_tok":2,"norm_topk_prob":true,"moe_intermediate_size":32,"intermediate_size":32,"vocab_size":300}`))
	var all listed // of several classes, so that each finds what it needs
	for _, s := range []settings{base, small("Qwen2ForCausalLM"), small("Qwen3ForCausalLM").with(settings{"head_dim": 8})} {
		for _, info := range weights(s) {
			if _, ok := all.Shape(info.Name); !ok {
				all = append(all, info)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := object.Parse("config.json", data)
		if err != nil {
			return
		}
		c, err := arch.Convert(o, all, arch.Options{})
		if err != nil {
			return
		}
		for _, s := range c.Tensors {
			n := 1
			for _, d := range s.Shape {
				if d < 1 {
					t.Fatalf("%s is %v", s.Name, s.Shape)
				}
				n *= d
			}
			if s.Values != nil && len(s.Values) != n || n > 300*32 {
				t.Fatalf("%s %v has %d values", s.Name, s.Shape, len(s.Values))
			}
		}
	})
}

// TestManyExperts: a config.json that claims hundreds of layers of thousands of experts is refused before all of them are
// listed.
func TestManyExperts(t *testing.T) {
	s := small("Qwen3MoeForCausalLM").with(settings{"num_hidden_layers": 1 << 8, "num_experts": 1 << 14, "moe_intermediate_size": 32,
		"norm_topk_prob": true})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := convert(t, "config.json", s, small("Qwen3ForCausalLM"))
	runtime.ReadMemStats(&after)
	if err == nil || !strings.Contains(err.Error(), "tensor ") {
		t.Errorf("%v", err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
		t.Errorf("%d bytes allocated", got)
	}
}

// fuzzVocab is the vocab_size that the fuzzed tokenizers come with.
const fuzzVocab = 300

var fuzzModel = tokenizerModel{quirks: arch.TokenizerOf("LlamaForCausalLM"), vocab: fuzzVocab}

// useBPE loads a BPE model in every way in which it can be.
func useBPE(t *testing.T, b *bpeModel) {
	files := &tokenizerFiles{bpe: b, added: b.added}
	for _, m := range []tokenizerModel{fuzzModel, {quirks: arch.TokenizerOf("Gemma4ForCausalLM"), vocab: fuzzVocab}, {quirks: arch.TokenizerOf("QWenLMHeadModel")}} {
		c := &Checkpoint{}
		load := c.loadMergedSPM
		if b.byteLevel {
			load = func(f *tokenizerFiles, m tokenizerModel) (*vocabulary, error) { return c.loadBPE(f, m, Options{}) }
		} else if m.quirks.Characters {
			load = c.loadCharacters
		}
		v, err := load(files, m)
		if err == nil {
			err = c.loadSpecialTokens(files, v, m)
		}
		if err == nil && len(v.tokens) <= fuzzVocab {
			useTokenizer(t, c)
		}
	}
}

// FuzzRanks: a file of ranks either is an error or gives a tokenizer that works.
func FuzzRanks(f *testing.F) {
	f.Add([]byte("YQ== 0\nYg== 1\nYWI= 2\n"))
	f.Add([]byte("YQ== 0\r\n\r\nYWFhYQ== 7"))
	f.Add([]byte("YQ== 99999999999999999999"))
	f.Add([]byte("version https://git-lfs.github.com/spec/v1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if b, err := parseRanks("x.tiktoken", data); err == nil {
			b.added = b.specialsAfter(arch.TokenizerOf("QWenLMHeadModel").Specials)
			useBPE(t, b)
		}
	})
}

// FuzzTekken: a tekken.json either is an error or gives a tokenizer that works.
func FuzzTekken(f *testing.F) {
	f.Add(tinyTekken(f, nil))
	f.Add([]byte(`{"config":{"default_vocab_size":16777216,"default_num_special_tokens":16777216},"vocab":[]}`))
	f.Add([]byte(`{"config":{"default_vocab_size":9,"default_num_special_tokens":2},"vocab":[{"rank":0,"token_bytes":"YQ=="},null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if b, err := parseTekken("tekken.json", data); err == nil {
			useBPE(t, b)
		}
	})
}

// FuzzVocabAndMerges: vocab.json and merges.txt either are an error or give a tokenizer that works.
func FuzzVocabAndMerges(f *testing.F) {
	f.Add([]byte(`{"a":0,"b":1,"ab":2}`), []byte("#version: 0.2\na b\n"))
	f.Add([]byte(`{"a":0,"a":1`), []byte("a\n"))
	f.Add([]byte(`{"":3,"Ġ":16777216}`), []byte("a b c\r\n"))
	f.Fuzz(func(t *testing.T, vocab, merges []byte) {
		if b, err := parseVocabAndMerges("vocab.json", vocab, "merges.txt", merges); err == nil {
			b.pre = "gpt-2"
			useBPE(t, b)
		}
	})
}

// FuzzTokenizerJSON: a tokenizer.json either is an error or gives a tokenizer that works.
func FuzzTokenizerJSON(f *testing.F) {
	f.Add(bytesTokenizer(f, nil))
	f.Add(asMerges(f, tinyPieces()[250:]))
	f.Add([]byte(`{"model":{"vocab":{"a":1,"b":2,"ab":3},"merges":["a b"]},"pre_tokenizer":{"type":"ByteLevel"}}`))
	f.Add([]byte(`{"model":{"vocab":{"a":1,"b":2,"ab":3},"merges":[["a","b"]],"byte_fallback":true},"added_tokens":[{"id":3,"content":"x"}]}`))
	f.Add([]byte(`{"model":{"vocab":{},"merges":[]},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split"},null]},` +
		`"normalizer":{"type":"Sequence","normalizers":[{}]},"post_processor":{"type":"TemplateProcessing","single":[{}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		j, err := parseTokenizerJSON("tokenizer.json", data)
		if err != nil {
			return
		}
		useBPE(t, j)
	})
}

// FuzzSentencePiece: a tokenizer.model either is an error or gives a tokenizer that works.
func FuzzSentencePiece(f *testing.F) {
	f.Add(sentencePieceModel(tinyPieces()[255:], modelTypeBPE, true))
	f.Add(sentencePieceModel(tinyPieces()[:4], modelTypeBPE, false))
	f.Add(sentencePieceModel(nil, modelTypeUnigram, false))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, data []byte) {
		model, err := parseSentencePiece("tokenizer.model", data)
		if err != nil {
			return
		}
		c := &Checkpoint{}
		if _, err := c.loadSentencePiece(&tokenizerFiles{model: model}, fuzzModel); err == nil {
			useTokenizer(t, c)
		}
	})
}

func useTokenizer(t *testing.T, c *Checkpoint) {
	tok, err := tokenizer.New(c)
	if err != nil {
		return
	}
	for _, id := range tok.Encode("the ab\n\xffé", tokenizer.EncodeOptions{ParseSpecial: true}) {
		if id < 0 || id >= fuzzVocab {
			t.Fatalf("id %d", id)
		}
	}
}

// FuzzCard: no model card makes the program fail.
func FuzzCard(f *testing.F) {
	f.Add([]byte("---\nlicense: mit\nbase_model: [a/b, c]\ntags: x\n---\n"))
	f.Add([]byte("---\nlicense: &a [*a]\nname: {}\n---\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c Checkpoint
		if err := cardMetadata(&c.md, data); err == nil && len(c.md) > len(data) {
			t.Fatalf("%d entries from %d bytes", len(c.md), len(data))
		}
	})
}
