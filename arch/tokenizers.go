package arch

// Tokenizers of classes whose families are not here: of theirs, a folder of a tokenizer alone can be read.
func init() {
	tokenizes(&Tokenizer{Pre: "kimi-k2"}, "KimiLinearForCausalLM")
	tokenizes(&Tokenizer{Pre: "qwen2", Specials: append([]string{"<|endoftext|>", "<|im_start|>", "<|im_end|>"}, numbered("<|extra_%d|>", 205)...)},
		"QWenLMHeadModel")
}
