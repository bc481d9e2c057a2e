package arch

import "fmt"

// Tokenizer is what llama.cpp's converter knows of the tokenizers of a class and their files do not say. The zero value is for
// those of which it knows nothing more.
type Tokenizer struct {
	// Pre is the name of tokenizer.ggml.pre, where several split as tokenizer.json says, or no file says how to split.
	Pre string
	// Characters: BPE of characters rather than SentencePiece.
	Characters bool
	// Visible are control tokens that are written as user-defined, so that llama.cpp's parser of chats sees them.
	Visible []string
	// PrefixSaid: add_prefix_space of tokenizer_config.json is written for byte-level BPE too, where it means nothing.
	PrefixSaid bool
	// PrefixAlways: whether a space goes before a text is written whatever it is.
	PrefixAlways bool
	// AddBOS: BOS goes before every text, whatever the files say.
	AddBOS bool
	// Tokens are special tokens by kind: bos, eos, unk, eot, eom.
	Tokens []SpecialToken
	// IDs are those that are written whatever the files say.
	IDs []SpecialID
	// EOSKey is the member of config.json that has EOS's id; "": the files have it where all do.
	EOSKey string
	// EOTListed: EOT is the first of several eos_token_id of generation_config.json.
	EOTListed bool
	// Specials follow the tokens of a file of ranks; only the tokenizer's Python code names them.
	Specials []string
	// NUL is what is written for the token "\x00" of a SentencePiece model, at which readers' strings end.
	NUL string
	// Unused begins the tokens of a SentencePiece model that are written as unused.
	Unused string
}

// SpecialToken is a special token that the files may not name.
type SpecialToken struct {
	Kind, Content string
	Always        bool // it takes the place of one that they do name
}

// SpecialID is the id of a special token in a vocabulary of Size tokens, 0 standing for any size.
type SpecialID struct {
	Kind     string
	ID, Size int
	Beyond   bool // it is written even if there are fewer tokens
}

// tokenizers are those of classes that have any quirks.
var tokenizers = map[string]*Tokenizer{}

// tokenizes says what tokenizer classes have. Two for a class are a mistake in the program.
func tokenizes(t *Tokenizer, classes ...string) {
	for _, class := range classes {
		if tokenizers[class] != nil {
			panic("arch: " + class + " has two tokenizers")
		}
		tokenizers[class] = t
	}
}

// TokenizerOf returns what is known of a class's tokenizer.
func TokenizerOf(class string) Tokenizer {
	if t := tokenizers[class]; t != nil {
		return *t
	}
	return Tokenizer{}
}

// numbered lists names with numbers from 0 on: format holds the place of the number.
func numbered(format string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf(format, i)
	}
	return names
}
