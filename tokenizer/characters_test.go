package tokenizer

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// tinyGemma4 is tinySPM's vocabulary with merges in place of scores, and line breaks.
func tinyGemma4() metadata {
	m := tinySPM()
	tokens := append(slices.Clone(m[keyTokens].([]string)), "\n", "\n\n", "\n\n\n", "▁in\n")
	types := append(slices.Clone(m[keyTypes].([]int32)), int32(Normal), int32(Normal), int32(Normal), int32(Normal))
	return metadata{
		keyModel: "gemma4", keyTokens: tokens, keyTypes: types,
		keyMerges: []string{"▁ t", "h e", "▁t he", "i n", "▁ in", "e r", "▁ ▁", "▁▁ ▁▁", "t h", "\n \n"},
		keyBOS:    uint32(1), keyUNK: uint32(0), keyAddBOS: false,
	}
}

func TestGemma4(t *testing.T) {
	tok := mustNew(t, tinyGemma4())
	for _, c := range []struct{ text, want string }{
		{"", "<s>"}, // though add_bos_token is false
		{"the", "<s>|t|he"},
		{" the", "<s>|▁the"},
		{"ether", "<s>|e|t|he|r"},
		{"x", "<s>|<0x78>"},
		{"é中", "<s>|é|<0xE4>|<0xB8>|<0xAD>"},
		{"\xff", "<s>|<0xFF>"},
		{"<user>the", "<s>|<user>|t|he"},
		{"     ", "<s>|▁▁▁▁|▁"},
		{"\n\n\n", "<s>|\n\n\n"}, // which no merge makes
		{" in\n", "<s>|▁in|\n"},  // no token joins a line and its end
		{"\n\n\n\n", "<s>|\n\n|\n\n"},
	} {
		ids := tok.Encode(c.text, EncodeOptions{})
		var got []string
		for _, id := range ids {
			got = append(got, tok.tokens[id])
		}
		if s := strings.Join(got, "|"); s != c.want {
			t.Errorf("%q: got %q, want %q", c.text, s, c.want)
		}
		if s := tok.Decode(ids); s != c.text {
			t.Errorf("%q decodes to %q", c.text, s)
		}
	}
	if id, ok := tok.MergesReachAll(); ok || tok.tokens[id] != "▁▁" && tok.tokens[id] != "\n\n\n" {
		t.Errorf("merges make all tokens, also %q", tok.tokens[id])
	}

	// The same vocabulary by the name of its pre-tokenizer.
	other := mustNew(t, tinyGemma4().with(keyModel, "gpt2").with(keyPre, "granite-embed-multi-311m"))
	sarvam := mustNew(t, tinyGemma4().with(keyModel, "gpt2").with(keyPre, "sarvam-moe"))
	rng := rand.New(rand.NewPCG(13, 14))
	for range 1000 {
		text := strings.ReplaceAll(randomText(rng), spaceMark, "")
		ids := tok.Encode(text, EncodeOptions{})
		if got := other.Encode(text, EncodeOptions{}); !slices.Equal(got, ids) {
			t.Fatalf("%q: got %v, want %v", text, got, ids)
		}
		if got := tok.Decode(ids); got != text {
			t.Fatalf("%q comes back as %q", text, got)
		}
	}
	if got := sarvam.Encode("\n\n\n", EncodeOptions{}); len(got) != 2 {
		t.Errorf("sarvam-moe takes line breaks whole and adds BOS: %v", got)
	}

	// A character whose bytes are not all tokens is unknown; without an unknown token it is lost.
	m := tinyGemma4()
	tokens := slices.Clone(m[keyTokens].([]string))
	tokens[3+0xB8] = "[gone]"
	if got := mustNew(t, m.with(keyTokens, tokens)).Encode("中", EncodeOptions{NoBOS: true}); !slices.Equal(got, []int32{0}) {
		t.Errorf("a character without a byte: %v", got)
	}
	if got := mustNew(t, m.with(keyTokens, tokens).with(keyUNK, nil)).Encode("中", EncodeOptions{NoBOS: true}); len(got) != 0 {
		t.Errorf("a character without a byte, no unknown token: %v", got)
	}
}

// What llama.cpp and the original tokenizers make of texts that tell a pattern from its relatives.
func TestSplitPatterns(t *testing.T) {
	for _, c := range []struct{ pre, text, want string }{
		{"kimi-k2", "中文abc中 Abc'S 12345々", "中文|abc|中| Abc'S| |123|45|々"},
		{"kimi-k2", "日本のテスト。\n\n  x", "日本|のテスト|。\n\n| | x"},
		{"tiny_aya", "1234567 12a", "1|234|567| |12|a"},
		{"afmoe", "x1234567 中文ไทย a", "x|1|234|567| |中文ไ|ทย| a"},
		{"exaone-moe", "the cat's own 12 a!\n\n", "the cat|'s| own| |1|2| a|!\n|\n"},
		{"laguna", "a\n\n  b", "a|\n\n| | b"},
		{"qwen2", "a \n\n  b", "a| \n\n| | b"},
		{"laguna", "a \n\n  b", "a| |\n\n| | b"},
		{"minicpm5", "12345 It's", "123|45| It|'s"},
		{"jais-2", "a" + "       " + "b", "a|    |  | b"},
		{"ufakzeka", "Ali's 12", "Ali|'s| |1|2"},
		{"spark2_5", "a!\n\nb 123", "a|!|\n|\n|b| |1|2|3"},
		{"youtu", "한국어。、ㄅㄆ中 Abc'll 12", "한국어|。、|ㄅㄆ|中| Abc'll| |1|2"},
		{"superbpe", "a 1234567b", "a |1|234|567|b"},
		{"chameleon", "IMGIMGABZ a  12!", "IMGIMGABZ| a|  |1|2|!"},
		{"whitespace", "a  b\n", "a|  |b|\n"},
		{"granite-embed-multi-97m", "क्षि's 1234", "क्षि's| |123|4"},
	} {
		pre, ok := PreByName(c.pre)
		if !ok {
			t.Errorf("%s is not known", c.pre)
			continue
		}
		s, err := pre.splitter()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(split(s, c.text), "|"); got != c.want {
			t.Errorf("%s: %q: got %q, want %q", c.pre, c.text, got, c.want)
		}
	}
}
