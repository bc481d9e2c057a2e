package arch

import "strings"

// Tokenizers of classes whose families are not here: of theirs, a folder of a tokenizer alone can be read.
func init() {
	tokenizes(&Tokenizer{Pre: "kimi-k2"}, "KimiLinearForCausalLM")
	tokenizes(&Tokenizer{Pre: "qwen2", Specials: append([]string{"<|endoftext|>", "<|im_start|>", "<|im_end|>"}, numbered("<|extra_%d|>", 205)...)},
		"QWenLMHeadModel")
}

// SlowTokenizer returns what the Python code of a tokenizer_class does before BPE: the pre-tokenizer that splits alike, ""
// where the class is not known, and whether the text is normalised to NFC.
func SlowTokenizer(class string) (pre string, nfc bool) {
	switch strings.TrimSuffix(class, "Fast") {
	case "GPT2Tokenizer", "CodeGenTokenizer":
		return "gpt-2", false
	case "Qwen2Tokenizer":
		return "qwen2", true
	}
	return "", false
}
