package tokenizer

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

type metadata map[string]any

func (m metadata) Meta(key string) (any, bool) { v, ok := m[key]; return v, ok }

// with returns a copy of m with one key changed; a nil value removes it.
func (m metadata) with(key string, value any) metadata {
	c := metadata{}
	for k, v := range m {
		c[k] = v
	}
	if c[key] = value; value == nil {
		delete(c, key)
	}
	return c
}

// gopher is the vocabulary of the built-in model, with Llama 3's pre-tokenizer.
func gopher(t testing.TB) metadata {
	t.Helper()
	data, err := os.ReadFile("../testdata/gopher-4m/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		AddedTokens []struct {
			ID      int
			Content string
		} `json:"added_tokens"`
		Model struct {
			Vocab  map[string]int
			Merges []string
		}
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	tokens := make([]string, 2048)
	types := make([]int32, len(tokens))
	for token, id := range file.Model.Vocab {
		tokens[id], types[id] = token, int32(Normal)
	}
	for _, added := range file.AddedTokens {
		tokens[added.ID], types[added.ID] = added.Content, int32(Control)
	}
	return metadata{
		keyModel: "gpt2", keyPre: "llama-bpe", keyTokens: tokens, keyTypes: types, keyMerges: file.Model.Merges,
		keyBOS: uint32(2046), keyEOS: uint32(2047), keyAddBOS: true,
	}
}

// bytePres are the pre-tokenizers for vocabularies of bytes, as gopher's.
func bytePres() []Pre {
	return slices.DeleteFunc(slices.Clone(pres), func(p Pre) bool { return p.Characters })
}

func mustNew(t testing.TB, m Metadata) *Tokenizer {
	t.Helper()
	tok, err := New(m)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// The golden ids were made by Hugging Face's @huggingface/tokenizers 0.2.0 from the built-in model's tokenizer.json.
func TestGolden(t *testing.T) {
	data, err := os.ReadFile("testdata/gopher-4m.golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden []struct {
		Text string
		IDs  []int32
	}
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden) < 30 {
		t.Fatalf("only %d texts", len(golden))
	}
	tok := mustNew(t, gopher(t))
	for _, g := range golden {
		if got := tok.Encode(g.Text, EncodeOptions{NoBOS: true, ParseSpecial: true}); !slices.Equal(got, g.IDs) {
			t.Errorf("%q:\n got %v\nwant %v", g.Text, got, g.IDs)
		}
	}
}

func TestSpecialTokens(t *testing.T) {
	m := gopher(t)
	types := slices.Clone(m[keyTypes].([]int32))
	types[2045] = int32(UserDefined)
	tokens := slices.Clone(m[keyTokens].([]string))
	tokens[2045] = "<user>"
	m = m.with(keyTypes, types).with(keyTokens, tokens).with(keyMerges, []string{}).with(keyAddEOS, true)
	tok := mustNew(t, m)
	if id, add := tok.BOS(); id != 2046 || !add {
		t.Errorf("BOS is %d, %v", id, add)
	}
	if id, add := tok.EOS(); id != 2047 || !add {
		t.Errorf("EOS is %d, %v", id, add)
	}
	if n := tok.VocabSize(); n != 2048 {
		t.Errorf("%d tokens", n)
	}
	a, b := int32(slices.Index(tokens, "a")), int32(slices.Index(tokens, "b"))
	for _, c := range []struct {
		text string
		opt  EncodeOptions
		want []int32
	}{
		{"", EncodeOptions{}, []int32{2046, 2047}},
		{"", EncodeOptions{NoBOS: true}, nil},
		{"a<user>b", EncodeOptions{}, []int32{2046, a, 2045, b, 2047}},
		{"<user><user>", EncodeOptions{NoBOS: true}, []int32{2045, 2045}},
		{"a<|end_of_text|>", EncodeOptions{NoBOS: true, ParseSpecial: true}, []int32{a, 2047}},
	} {
		got := tok.Encode(c.text, c.opt)
		if !slices.Equal(got, c.want) {
			t.Errorf("%q %+v: got %v, want %v", c.text, c.opt, got, c.want)
		}
		if s := tok.Decode(got); s != c.text && c.opt != (EncodeOptions{NoBOS: true, ParseSpecial: true}) {
			t.Errorf("%q %+v: decodes to %q", c.text, c.opt, s)
		}
	}
	if got := tok.Encode("<|end_of_text|>", EncodeOptions{NoBOS: true}); slices.Contains(got, 2047) {
		t.Errorf("a control token was parsed unasked: %v", got)
	}
	if got := tok.Decode([]int32{-1, a, 2048}); got != "a" {
		t.Errorf("ids outside the vocabulary: %q", got)
	}
}

// pieces are what the random texts of the tests are made of.
var pieces = []string{
	"a", "Zz", "the", "nil", "é", "e\u0301", "\u0301", "中文", "ไทย", "🚀", "👩\u200d💻", "1", "23", "4567", "٣", "½", " ",
	"  ",
	"\t", "\n", "\r\n", "\r", "\u00a0", "\u2003", "\u0085", "\u2028", "'", "'s", "'RE", "'ll", "'ſ", "!", "--", "_",
	"(", "/", "\x00", "\u200b", "\ufeff", "\xff", "\xc3", "\xe4\xb8", "\U0001F1E9", "ǅ", "ʰ", "ß", "Ⅷ", "।", "$", "+",
	"<|x|>",
}

func randomText(rng *rand.Rand) string {
	var b strings.Builder
	for range rng.IntN(20) {
		piece := pieces[rng.IntN(len(pieces))]
		for range 1 + rng.IntN(3)*rng.IntN(2) {
			b.WriteString(piece)
		}
	}
	return b.String()
}

func TestRoundTrip(t *testing.T) {
	m := gopher(t)
	rng := rand.New(rand.NewPCG(1, 2))
	for _, pre := range bytePres() {
		tok := mustNew(t, m.with(keyPre, pre.Names[0]))
		for range 200 {
			text := randomText(rng)
			if got := tok.Decode(tok.Encode(text, EncodeOptions{})); got != text {
				t.Fatalf("%s: %q comes back as %q", pre.Names[0], text, got)
			}
		}
	}
}

// Every hand-written splitter agrees with its pattern.
func TestHandWritten(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for pattern := range handWritten {
		fast, err := patternSplitter(pattern)
		if err != nil {
			t.Fatal(err)
		}
		slow, err := regexSplitter(pattern)
		if err != nil {
			t.Fatal(err)
		}
		compare := func(text string) {
			got, want := split(fast, text), split(slow, text)
			if !slices.Equal(got, want) {
				t.Fatalf("%s: %q:\n got %q\nwant %q", pattern, text, got, want)
			}
			if strings.Join(got, "") != text {
				t.Fatalf("%s: %q: words are lost: %q", pattern, text, got)
			}
		}
		for range 2000 {
			compare(randomText(rng))
		}
		for r := rune(0); r <= utf8.MaxRune; r++ { // all characters, in a context that tells their class
			if utf8.ValidRune(r) && (r < 0x3100 || r%97 == 0) {
				compare(fmt.Sprintf("a%[1]c%[1]c1%[1]c \n%[1]c", r))
			}
		}
	}
}

func split(s splitter, text string) []string {
	var words []string
	s(text, func(word string) { words = append(words, word) })
	return words
}

// A merger's heap gives the same tokens as looking for the best pair anew each time.
func TestMergeOrder(t *testing.T) {
	b := mustNew(t, gopher(t)).scheme.(*bpe)
	rng := rand.New(rand.NewPCG(5, 6))
	check := func(word string) {
		var ids []int32
		for i := range len(word) {
			ids = append(ids, b.byteID[word[i]])
		}
		for {
			best, at := bpeMerge{rank: 1 << 30}, -1
			for i := 0; i+1 < len(ids); i++ {
				if m, ok := b.merges[[2]int32{ids[i], ids[i+1]}]; ok && m.rank < best.rank {
					best, at = m, i
				}
			}
			if at < 0 {
				break
			}
			ids = slices.Replace(ids, at, at+2, best.id)
		}
		if got := b.mergeWord(nil, word, b.merger()); !slices.Equal(got, ids) {
			t.Fatalf("%q: got %v, want %v", word, got, ids)
		}
	}
	for range 2000 {
		check(randomText(rng))
	}
	for n := range 40 {
		check(strings.Repeat(" ", n))
		check(strings.Repeat("er", n))
	}
}

func TestMergesReachAll(t *testing.T) {
	m := gopher(t)
	if id, ok := mustNew(t, m).MergesReachAll(); !ok {
		t.Errorf("token %d is not reached", id)
	}
	merges := m[keyMerges].([]string)
	last := strings.ReplaceAll(merges[len(merges)-1], " ", "")
	id, ok := mustNew(t, m.with(keyMerges, merges[:len(merges)-1])).MergesReachAll()
	if ok || m[keyTokens].([]string)[id] != last {
		t.Errorf("without its merge %q: got %d, %v", last, id, ok)
	}
}

func TestWarnings(t *testing.T) {
	m := gopher(t)
	for _, c := range []struct {
		m    metadata
		want string
	}{
		{m, ""},
		{tinySPM(), ""},
		{tinyGemma4(), ""},
		{m.with(keyPre, nil), "there is no tokenizer.ggml.pre"},
		{m.with(keyEOS, uint32(2048)), "tokenizer.ggml.eos_token_id is 2048, but the vocabulary has 2048 tokens; ignored"},
	} {
		tok := mustNew(t, c.m)
		if got := strings.Join(tok.Warnings(), "\n"); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	if id, _ := mustNew(t, m.with(keyEOS, uint32(2048))).EOS(); id != -1 {
		t.Errorf("EOS beyond the vocabulary is %d", id)
	}
}

func TestBadMetadata(t *testing.T) {
	m := gopher(t)
	tokens := func(i int, token string) []string {
		s := slices.Clone(m[keyTokens].([]string))
		s[i] = token
		return s
	}
	s := tinySPM()
	for _, c := range []struct {
		m    metadata
		want string
	}{
		{m.with(keyModel, nil), "tokenizer.ggml.model is missing"},
		{m.with(keyModel, int32(1)), "tokenizer.ggml.model is int32, want string"},
		{m.with(keyModel, "bert"), `"bert" is not supported; supported: gpt2`},
		{m.with(keyPre, "nonesuch"), `tokenizer.ggml.pre "nonesuch" is not known; known: llama-bpe`},
		{m.with(keyPre, true), "tokenizer.ggml.pre is bool, want string"},
		{m.with(keyTokens, nil), "tokenizer.ggml.tokens is missing"},
		{m.with(keyTokens, []int32{1}), "tokenizer.ggml.tokens is []int32, want []string"},
		{m.with(keyTokens, []string{}), "tokenizer.ggml.tokens is empty"},
		{m.with(keyTokens, tokens(7, "!")), `"!" has two ids, 0 and 7`},
		{m.with(keyTypes, []int32{1, 1}), "tokenizer.ggml.token_type has 2 entries for 2048 tokens"},
		{m.with(keyMerges, nil), "tokenizer.ggml.merges is missing"},
		{m.with(keyMerges, []string{"a b", "x"}), `tokenizer.ggml.merges[1]: "x" is not two tokens`},
		{m.with(keyMerges, []string{"q q"}), `tokenizer.ggml.merges[0]: "qq" is not in the vocabulary`},
		{m.with(keyBOS, uint32(2048)), "add_bos_token is true, but there is no tokenizer.ggml.bos_token_id in the vocabulary"},
		{m.with(keyEOS, int32(-1)), "tokenizer.ggml.eos_token_id is -1"},
		{m.with(keyEOS, "1"), "tokenizer.ggml.eos_token_id is string, want an integer"},
		{m.with(keyAddBOS, uint8(1)), "tokenizer.ggml.add_bos_token is uint8, want bool"},
		{m.with(keyBOS, nil), "add_bos_token is true, but there is no tokenizer.ggml.bos_token_id"},
		{s.with(keyScores, nil), "tokenizer.ggml.scores is missing"},
		{s.with(keyScores, []float32{1}), "tokenizer.ggml.scores has 1 entries"},
		{s.with(keySpacePrefix, "yes"), "tokenizer.ggml.add_space_prefix is string, want bool"},
	} {
		_, err := New(c.m)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "tokenizer: ") {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}
