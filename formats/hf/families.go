package hf

import (
	"encoding/json"
	"fmt"
)

// tokenizerFamily is what llama.cpp's converter knows of the tokenizers of a class and their files do not say.
type tokenizerFamily struct {
	// pre is the name of tokenizer.ggml.pre, where several split as tokenizer.json says, or no file says how to split.
	pre string
	// characters: BPE of characters (tokenizer.ggml.model gemma4) rather than SentencePiece.
	characters bool
	// prefixSaid: add_prefix_space of tokenizer_config.json is written for byte-level BPE too, where it means nothing.
	prefixSaid bool
	// tokens are special tokens by kind, used where the files name none.
	tokens []familyToken
	// specials follow the tokens of a file of ranks; only the tokenizer's Python code names them.
	specials []string
}

type familyToken struct{ kind, content string }

var (
	glm4Tokens = []familyToken{
		{"bos", "<|endoftext|>"}, {"eos", "<|endoftext|>"}, {"unk", "<|endoftext|>"}, {"eot", "<|user|>"},
	}
	glm4MoeTokens = []familyToken{
		{"bos", "[gMASK]"}, {"unk", "<|endoftext|>"}, {"eot", "<|user|>"}, {"eom", "<|observation|>"},
	}
	hunyuanSpecials = append([]string{"<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"}, extraTokens()...)
	qwenSpecials    = append([]string{"<|endoftext|>", "<|im_start|>", "<|im_end|>"}, extraTokens()...)
)

func extraTokens() []string {
	extra := make([]string, 205)
	for i := range extra {
		extra[i] = fmt.Sprintf("<|extra_%d|>", i)
	}
	return extra
}

var families = map[string]tokenizerFamily{
	"LlamaForCausalLM":                 {prefixSaid: true},
	"MistralForCausalLM":               {prefixSaid: true},
	"MixtralForCausalLM":               {prefixSaid: true},
	"Mistral3ForConditionalGeneration": {prefixSaid: true},
	"Ministral3ForCausalLM":            {prefixSaid: true},
	"SmolLM3ForCausalLM":               {prefixSaid: true},
	"GraniteForCausalLM":               {prefixSaid: true, pre: "smollm"},
	"GraniteMoeForCausalLM":            {prefixSaid: true, pre: "smollm"},

	"Gemma4ForCausalLM":              {characters: true},
	"Gemma4ForConditionalGeneration": {characters: true},

	"Glm4ForCausalLM":        {pre: "glm4", tokens: glm4Tokens},
	"Glm4MoeForCausalLM":     {pre: "glm4", tokens: glm4MoeTokens},
	"Glm4MoeLiteForCausalLM": {pre: "glm4", tokens: glm4MoeTokens},

	"BailingMoeV2ForCausalLM":             {pre: "bailingmoe2"},
	"Cohere2ForCausalLM":                  {pre: "command-r"},
	"CohereForCausalLM":                   {pre: "command-r"},
	"ExaoneForCausalLM":                   {pre: "exaone"},
	"Exaone4ForCausalLM":                  {pre: "exaone4"},
	"FalconH1ForCausalLM":                 {pre: "falcon-h1"},
	"GPTNeoXForCausalLM":                  {pre: "olmo"},
	"HunYuanDenseV1ForCausalLM":           {pre: "hunyuan-dense", specials: hunyuanSpecials},
	"HunYuanMoEV1ForCausalLM":             {pre: "hunyuan", specials: hunyuanSpecials},
	"KimiLinearForCausalLM":               {pre: "kimi-k2"},
	"KimiK25ForConditionalGeneration":     {pre: "kimi-k2"},
	"KimiVLForConditionalGeneration":      {pre: "kimi-k2"},
	"DeepseekV3ForCausalLM":               {pre: "kimi-k2"}, // of ranks; DeepSeek's own models have tokenizer.json
	"Lfm2ForCausalLM":                     {pre: "lfm2"},
	"Lfm2MoeForCausalLM":                  {pre: "lfm2"},
	"Llama4ForCausalLM":                   {pre: "llama4"},
	"Llama4ForConditionalGeneration":      {pre: "llama4"},
	"MiniMaxM2ForCausalLM":                {pre: "minimax-m2"},
	"MuseGlimmerForConditionalGeneration": {pre: "llama4"},
	"PhiForCausalLM":                      {pre: "phi-2"},
	"QWenLMHeadModel":                     {pre: "qwen2", specials: qwenSpecials},
	"StableLmForCausalLM":                 {pre: "stablelm2"},
	"Starcoder2ForCausalLM":               {pre: "starcoder"},
}

// Ids that llama.cpp's converter writes whatever the files say.
const (
	gemmaEOT      = 107    // <end_of_turn>
	codeLlamaSize = 32016  // of the vocabulary with tokens for infilling
	codeLlamaEOT  = 32010  // ▁<EOT>
	hunyuanBOS    = 127959 // <|bos|>
)

// familyTokens completes ids and add with what llama.cpp's converter knows of a class.
func (c *Checkpoint) familyTokens(f *tokenizerFiles, v *vocabulary, m tokenizerModel, ids map[string]int, add map[string]bool) error {
	for _, t := range families[m.class].tokens {
		id, ok := v.id(t.content)
		if _, named := ids[t.kind]; ok && !named {
			ids[t.kind] = id
		}
	}
	switch m.class {
	case "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration":
		add["bos"] = true
	case "GemmaForCausalLM":
		if gemmaEOT < len(v.tokens) {
			ids["eot"] = gemmaEOT
		}
	case "LlamaForCausalLM":
		if len(v.tokens) == codeLlamaSize {
			ids["eot"] = codeLlamaEOT
		}
	case "InternLM2ForCausalLM":
		// Chat models end their turns so, though EOS is </s>.
		if id, ok := v.id("<|im_end|>"); ok {
			ids["eos"] = id
		}
	case "HunYuanMoEV1ForCausalLM":
		if ids["bos"] = hunyuanBOS; hunyuanBOS >= len(v.tokens) {
			c.warn("%s: the id of BOS is %d in models of this class, but there are %d tokens", c.dir, hunyuanBOS, len(v.tokens))
		}
	case "HunYuanDenseV1ForCausalLM":
		return c.hunyuanTokens(m, len(v.tokens), ids)
	}
	return nil
}

// hunyuanTokens corrects EOS, which is eod_token_id of config.json, and EOT, the first of generation_config.json's several
// eos_token_id.
func (c *Checkpoint) hunyuanTokens(m tokenizerModel, size int, ids map[string]int) error {
	if m.config.Has("eod_token_id") {
		if id := m.config.Int("eod_token_id", -1, -1, 1<<31-1); id >= 0 && id < size {
			ids["eos"] = id
		}
		if m.config.Err() != nil {
			return m.config.Err()
		}
	}
	generation, err := c.readObject(generationFile)
	if err != nil {
		return nil // loadGeneration has warned of it
	}
	var list []int
	if raw, ok := generation.Get("eos_token_id"); ok && json.Unmarshal(raw, &list) == nil && len(list) > 1 &&
		list[0] >= 0 && list[0] < size {
		ids["eot"] = list[0]
	}
	return nil
}
