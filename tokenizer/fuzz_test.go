package tokenizer

import "testing"

// FuzzEncode: any text, whatever its bytes, is encoded without a panic and comes back.
func FuzzEncode(f *testing.F) {
	for _, seed := range []string{
		"", "Hello, world", " \t\n\r\n x", "I'LL 12345", "é\u0301中\xff\xe4\xb8🚀", "<|end_of_text|><user>",
	} {
		f.Add(seed, uint8(0))
		f.Add(seed, uint8(8))
		f.Add(seed, uint8(255))
	}
	m := gopher(f)
	toks := []*Tokenizer{mustNew(f, tinySPM()), mustNew(f, tinyGemma4())}
	for _, pre := range bytePres() {
		toks = append(toks, mustNew(f, m.with(keyPre, pre.Names[0])))
	}
	f.Fuzz(func(t *testing.T, text string, which uint8) {
		tok := toks[int(which)%len(toks)]
		ids := tok.Encode(text, EncodeOptions{})
		for _, id := range ids {
			if id < 0 || int(id) >= tok.VocabSize() {
				t.Fatalf("id %d", id)
			}
		}
		// SentencePiece makes a space of ▁, and keeps none after a token.
		bpe, isBPE := tok.scheme.(*bpe)
		if got := tok.Decode(ids); got != text && isBPE && !bpe.pre.EscapeSpaces {
			t.Fatalf("%q comes back as %q", text, got)
		}
		tok.Encode(text, EncodeOptions{ParseSpecial: true})
	})
}

// FuzzCanonical: no pattern makes canonical panic or blow up.
func FuzzCanonical(f *testing.F) {
	for _, seed := range []string{
		llama3Pattern, tikPattern, o200kPattern, bloomWords, bloomNested,
		`[`, `[^`, `[a-`, `[\p{`, `\`, `[]a]`, "[\xff-\r]", `x{1}{1}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		once := canonical(pattern)
		if len(once) > 2*len(pattern)+len(contractions)*len(pattern) {
			t.Fatalf("%q becomes %q", pattern, once)
		}
	})
}
