package hf

import (
	"testing"

	"github.com/llmq/llmq/arch"
	jsonfile "github.com/llmq/llmq/formats/hf/object"
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
	var all listed // of several classes, so that each finds what it needs
	for _, s := range []settings{base, small("Qwen2ForCausalLM"), small("Qwen3ForCausalLM").with(settings{"head_dim": 8})} {
		for _, info := range weights(s) {
			if _, ok := all.Shape(info.Name); !ok {
				all = append(all, info)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := jsonfile.Parse("config.json", data)
		if err != nil {
			return
		}
		c, err := arch.Convert(o, all)
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

// fuzzVocab is the vocab_size that the fuzzed tokenizers come with.
const fuzzVocab = 300

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
		c := &Checkpoint{}
		files := &tokenizerFiles{json: j, added: j.added}
		if j.byteLevel {
			_, err = c.loadBPE(files, fuzzVocab, Options{})
		} else {
			_, err = c.loadMergedSPM(files, fuzzVocab)
		}
		if err == nil {
			useTokenizer(t, c)
		}
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
		if _, err := c.loadSentencePiece(&tokenizerFiles{model: model}, fuzzVocab); err == nil {
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
