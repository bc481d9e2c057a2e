package arch

// glm4MoETokenizer is that of GLM-4.5 and later.
var glm4MoETokenizer = &Tokenizer{Pre: "glm4", Tokens: []SpecialToken{{Kind: "bos", Content: "[gMASK]"},
	{Kind: "unk", Content: "<|endoftext|>"}, {Kind: "eot", Content: "<|user|>"}, {Kind: "eom", Content: "<|observation|>"}}}

// Tokenizers of classes whose families have no file.
func init() {
	tokenizes(&Tokenizer{Pre: "glm4", Tokens: []SpecialToken{{Kind: "bos", Content: "<|endoftext|>"}, {Kind: "eos", Content: "<|endoftext|>"},
		{Kind: "unk", Content: "<|endoftext|>"}, {Kind: "eot", Content: "<|user|>"}}}, "Glm4ForCausalLM")
	tokenizes(glm4MoETokenizer, "Glm4MoeForCausalLM")
	hunyuan := append([]string{"<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"}, numbered("<|extra_%d|>", 205)...)
	tokenizes(&Tokenizer{Pre: "hunyuan-dense", Specials: hunyuan, EOSKey: "eod_token_id", EOTListed: true}, "HunYuanDenseV1ForCausalLM")
	tokenizes(&Tokenizer{Pre: "hunyuan", Specials: hunyuan, IDs: []SpecialID{{Kind: "bos", ID: 127959, Beyond: true}}}, "HunYuanMoEV1ForCausalLM")
	tokenizes(&Tokenizer{NUL: "🐉", Unused: "[UNUSED", PrefixAlways: true, // chat models end their turns so, though EOS is </s>
		Tokens: []SpecialToken{{Kind: "eos", Content: "<|im_end|>", Always: true}}}, "InternLM2ForCausalLM")
	tokenizes(&Tokenizer{Pre: "qwen2", Specials: append([]string{"<|endoftext|>", "<|im_start|>", "<|im_end|>"}, numbered("<|extra_%d|>", 205)...)},
		"QWenLMHeadModel")
	tokenizes(&Tokenizer{PrefixSaid: true}, "SmolLM3ForCausalLM", "Mistral3ForConditionalGeneration", "Ministral3ForCausalLM")
	for pre, classes := range map[string][]string{
		"bailingmoe2": {"BailingMoeV2ForCausalLM"},
		"command-r":   {"Cohere2ForCausalLM", "CohereForCausalLM"},
		"exaone":      {"ExaoneForCausalLM"},
		"exaone4":     {"Exaone4ForCausalLM"},
		"falcon-h1":   {"FalconH1ForCausalLM"},
		"olmo":        {"GPTNeoXForCausalLM"},
		"kimi-k2":     {"KimiLinearForCausalLM", "KimiK25ForConditionalGeneration", "KimiVLForConditionalGeneration"},
		"lfm2":        {"Lfm2ForCausalLM", "Lfm2MoeForCausalLM"},
		"llama4":      {"Llama4ForCausalLM", "Llama4ForConditionalGeneration", "MuseGlimmerForConditionalGeneration"},
		"minimax-m2":  {"MiniMaxM2ForCausalLM"},
		"phi-2":       {"PhiForCausalLM"},
		"stablelm2":   {"StableLmForCausalLM"},
		"starcoder":   {"Starcoder2ForCausalLM"},
	} {
		tokenizes(&Tokenizer{Pre: pre}, classes...)
	}
}
