package tokenizer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// tinySPM is a SentencePiece vocabulary of a few words, with byte tokens.
func tinySPM() metadata {
	tokens := []string{"<unk>", "<s>", "</s>"}
	types := []int32{int32(Unknown), int32(Control), int32(Control)}
	for i := range 256 {
		tokens = append(tokens, fmt.Sprintf("<0x%02X>", i))
		types = append(types, int32(Byte))
	}
	scores := make([]float32, len(tokens))
	for i, token := range strings.Fields("▁t he ▁the in ▁in er ▁▁ ▁▁▁▁ th é ▁ e t h i n r") {
		tokens = append(tokens, token)
		types = append(types, int32(Normal))
		scores = append(scores, -float32(i))
	}
	tokens = append(tokens, "<user>")
	types = append(types, int32(UserDefined))
	scores = append(scores, -1000)
	return metadata{keyModel: "llama", keyTokens: tokens, keyTypes: types, keyScores: scores}
}

func TestSPM(t *testing.T) {
	tok := mustNew(t, tinySPM())
	for _, c := range []struct{ text, want string }{
		{"", "<s>"},
		{"the", "<s>|▁the"},
		{" the", "<s>|▁|▁the"}, // ▁t before ▁▁
		{"then", "<s>|▁the|n"},
		{"ether", "<s>|▁|e|t|he|r"}, // he before er
		{"x", "<s>|▁|<0x78>"},
		{"é中", "<s>|▁|é|<0xE4>|<0xB8>|<0xAD>"},
		{"\xff", "<s>|▁|<0xFF>"},
		{"a<user>the", "<s>|▁|<0x61>|<user>|▁the"},
		{"     ", "<s>|▁▁▁▁|▁▁"},
		{"</s>", "<s>|▁|<0x3C>|<0x2F>|<0x73>|<0x3E>"},
	} {
		ids := tok.Encode(c.text, EncodeOptions{})
		var got []string
		for _, id := range ids {
			got = append(got, tok.tokens[id])
		}
		if s := strings.Join(got, "|"); s != c.want {
			t.Errorf("%q: got %s, want %s", c.text, s, c.want)
		}
		if s := tok.Decode(ids); s != c.text {
			t.Errorf("%q decodes to %q", c.text, s)
		}
	}
	noPrefix := mustNew(t, tinySPM().with(keySpacePrefix, false).with(keyAddBOS, false))
	if got := noPrefix.Encode("the", EncodeOptions{}); len(got) != 2 || noPrefix.Token(got[1]) != "he" {
		t.Errorf("without a space prefix: %v", got)
	}
	if got := noPrefix.Decode(noPrefix.Encode(" the", EncodeOptions{})); got != " the" {
		t.Errorf("without a space prefix: %q", got)
	}
}

// A vocabulary without byte tokens has the unknown token for what it cannot spell.
func TestSPMUnknown(t *testing.T) {
	m := tinySPM()
	tokens := slices.Clone(m[keyTokens].([]string))
	for i := range 256 {
		tokens[3+i] = fmt.Sprintf("[unused %d]", i)
	}
	tok := mustNew(t, m.with(keyTokens, tokens))
	ids := tok.Encode("the中", EncodeOptions{NoBOS: true})
	if len(ids) != 2 || ids[1] != 0 {
		t.Errorf("got %v", ids)
	}
}

// Word by word or all at once, the ids are the same.
func TestSPMWordwise(t *testing.T) {
	s := mustNew(t, tinySPM()).scheme.(*spm)
	if !s.wordwise {
		t.Fatal("no token joins words, and yet they are not tokenized one by one")
	}
	whole := *s
	whole.wordwise = false
	rng := rand.New(rand.NewPCG(11, 12))
	for range 2000 {
		text := randomText(rng) + " the" + randomText(rng) + "  in"
		got, want := s.encode(nil, text, true), whole.encode(nil, text, true)
		if !slices.Equal(got, want) {
			t.Fatalf("%q: got %v, want %v", text, got, want)
		}
	}

	m := tinySPM()
	tokens := slices.Clone(m[keyTokens].([]string))
	tokens[slices.Index(tokens, "th")] = "e▁t"
	tok := mustNew(t, m.with(keyTokens, tokens))
	if got := tok.Encode("e t", EncodeOptions{NoBOS: true}); len(got) != 2 || tok.tokens[got[1]] != "e▁t" {
		t.Errorf("a token that joins words is not made: %v", got)
	}
}

func TestSPMRoundTrip(t *testing.T) {
	tok := mustNew(t, tinySPM())
	rng := rand.New(rand.NewPCG(7, 8))
	for range 2000 {
		text := strings.ReplaceAll(randomText(rng), spaceMark, "")
		if got := tok.Decode(tok.Encode(text, EncodeOptions{})); got != text {
			t.Fatalf("%q comes back as %q", text, got)
		}
	}
}
