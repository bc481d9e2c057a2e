package hf

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/tokenizer"
)

// tinyRanks are all bytes and a few words.
func tinyRanks() []string {
	var tokens []string
	for i := range 256 {
		tokens = append(tokens, string([]byte{byte(i)}))
	}
	return append(tokens, "he", " t", " the", "in", "th", "the", "zqx")
}

func ranksText(tokens []string) []byte {
	var b strings.Builder
	for i, token := range tokens {
		fmt.Fprintf(&b, "%s %d\n", base64.StdEncoding.EncodeToString([]byte(token)), i)
	}
	return []byte(b.String())
}

// tinyTekken is a tekken.json of tinyRanks after 30 special tokens.
func tinyTekken(t testing.TB, changes settings) []byte {
	type token struct {
		Rank  int    `json:"rank"`
		Bytes string `json:"token_bytes"`
	}
	var vocab []token
	for i, text := range append(tinyRanks(), "beyond the vocabulary") {
		vocab = append(vocab, token{i, base64.StdEncoding.EncodeToString([]byte(text))})
	}
	return settings{
		"config": settings{"default_vocab_size": 30 + len(vocab) - 1, "default_num_special_tokens": 30, "version": "v3"},
		"vocab":  vocab,
	}.with(changes).json(t)
}

func TestRanks(t *testing.T) {
	for _, name := range []string{"qwen.tiktoken", ranksFile, sentencePieceFile} {
		c, err := withTokenizer(t, map[string][]byte{
			tokenizerFile: nil, name: ranksText(tinyRanks()),
			tokenizerConfigFile: settings{"eos_token": "<|end|>",
				"added_tokens_decoder": settings{"270": settings{"content": "<|end|>", "special": true}}}.json(t),
		}, Options{Pre: "qwen2"})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantMeta(t, c, map[string]any{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
			"tokenizer.ggml.eos_token_id": uint32(270), "tokenizer.ggml.scores": nil})
		// " the" is merged of " t" and "he", which come before it; "zqx" of nothing.
		merges, _ := c.Meta("tokenizer.ggml.merges")
		if want := []string{"h e", "Ġ t", "Ġt he", "i n", "t h", "t he"}; !slices.Equal(merges.([]string), want) {
			t.Errorf("%s: merges %q, want %q", name, merges, want)
		}
		tok, err := tokenizer.New(c)
		if err != nil {
			t.Fatal(err)
		}
		if got := tok.Encode("the inn", tokenizer.EncodeOptions{}); !slices.Equal(got, []int32{261, 32, 259, 110}) {
			t.Errorf("%s: got %d", name, got)
		}
	}
	_, err := withTokenizer(t, map[string][]byte{tokenizerFile: nil, "x.tiktoken": ranksText(tinyRanks())}, Options{})
	if err == nil || !strings.Contains(err.Error(), "x.tiktoken: the file does not say how text is split into words; name the "+
		"pre-tokenizer with --pre: llama-bpe, ") {
		t.Errorf("got %v", err)
	}
	for _, c := range []struct{ data, want string }{
		{"", "x.tiktoken: holds no ranks"},
		{"YQ==", `x.tiktoken:1: "YQ==" is not a token in base64 and its rank`},
		{"YQ== 0\n\nY 1\n", `x.tiktoken:3: "Y" is not a token in base64`},
		{"YQ== -1", `x.tiktoken:1: rank "-1" is not a number from 0 to 16777216`},
		{"YQ== 0\nYQ== 1", `x.tiktoken:2: token "a" has two ranks, 0 and 1`},
		{"YQ== 0\nYg== 0", `tokens "a" and "b" have the same id, 0`},
		{strings.Repeat("YWFh", 2000) + " 0", "a token of 6000 bytes"},
		{"<html>", "x.tiktoken: it is an HTML page"},
	} {
		_, err := withTokenizer(t, map[string][]byte{tokenizerFile: nil, "x.tiktoken": []byte(c.data + "\n")}, Options{Pre: "qwen2"})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q: got %v, want %s", c.data, err, c.want)
		}
	}
}

// Special tokens that only Python code names follow the ranks, unless a file says otherwise.
func TestRankSpecials(t *testing.T) {
	r, err := parseRanks("qwen.tiktoken", ranksText(tinyRanks()))
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range r.specialsAfter(arch.TokenizerOf("QWenLMHeadModel").Specials)[:4] {
		if want := []string{"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>"}[i]; a.content != want || a.id != 263+i || !a.special {
			t.Errorf("got %v, want %s", a, want)
		}
	}
}

func TestTekken(t *testing.T) {
	c, err := withTokenizer(t, map[string][]byte{tokenizerFile: nil, tekkenFile: tinyTekken(t, nil)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantMeta(t, c, map[string]any{
		"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken", "tokenizer.ggml.bos_token_id": uint32(1),
		"tokenizer.ggml.eos_token_id": uint32(2), "tokenizer.ggml.unknown_token_id": uint32(0),
		"tokenizer.ggml.padding_token_id": uint32(11), "tokenizer.ggml.add_bos_token": true,
	})
	tokens, _ := c.Meta("tokenizer.ggml.tokens")
	types, _ := c.Meta("tokenizer.ggml.token_type")
	for id, want := range map[int]string{0: "<unk>", 3: "[INST]", 29: "<SPECIAL_29>", 30: "Ā", 292: "zqx", 293: "[PAD293]"} {
		if got := tokens.([]string)[id]; got != want {
			t.Errorf("token %d is %q, want %q", id, got, want)
		}
	}
	if got := types.([]int32); got[29] != 3 || got[30] != 1 || got[293] != 5 {
		t.Errorf("types %d", got)
	}
	if scores, _ := c.Meta("tokenizer.ggml.scores"); !slices.Equal(scores.([]float32), make([]float32, 300)) {
		t.Errorf("scores %v", scores)
	}
	merges, _ := c.Meta("tokenizer.ggml.merges")
	if want := []string{"h e", "Ġ t", "Ġ the", "Ġt he", "i n", "t h", "t he", "th e"}; !slices.Equal(merges.([]string), want) {
		t.Errorf("merges %q, want %q", merges, want)
	}
	tok, err := tokenizer.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Encode("the zqx", tokenizer.EncodeOptions{}); !slices.Equal(got, []int32{1, 291, 62, 152, 143, 150}) {
		t.Errorf("got %d", got)
	}

	var runs []settings // each is made by each two that are as long together: 170 kB make 21 MB of merges
	for i := range 500 {
		runs = append(runs, settings{"rank": i, "token_bytes": base64.StdEncoding.EncodeToString(make([]byte, i+1))})
	}
	named, err := parseTekken("tekken.json", tinyTekken(t, settings{"special_tokens": []settings{
		{"rank": 0, "token_str": "</s>"}, {"rank": 4, "token_str": "<s>"}}}))
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]int{"bos": 4, "eos": 0, "pad": 0}; !reflect.DeepEqual(named.special, want) {
		t.Errorf("special tokens %v, want %v", named.special, want)
	}
	for _, c := range []struct {
		changes settings
		want    string
	}{
		{settings{"config": nil}, "tekken.json: config: is missing"},
		{settings{"config": settings{"default_vocab_size": 3}}, "config.default_num_special_tokens: is missing"},
		{settings{"config": settings{"default_vocab_size": 3, "default_num_special_tokens": 4}},
			"config.default_num_special_tokens: is 4, but default_vocab_size is 3"},
		{settings{"vocab": 1}, "vocab: is 1, want a list of tokens"},
		{settings{"vocab": []settings{{"token_bytes": "YQ=="}}}, "vocab[0]: rank is missing or negative"},
		{settings{"vocab": []settings{{"rank": 0, "token_bytes": "?"}}}, `vocab[0]: token_bytes is "?", want 1 to 1024 bytes in base64`},
		{settings{"vocab": []settings{{"rank": 0, "token_bytes": "YQ=="}, {"rank": 1, "token_bytes": "YQ=="}}},
			`vocab[1]: "a" has two ranks, 0 and 1`},
		{settings{"config": settings{"default_vocab_size": 1000, "default_num_special_tokens": 1}, "vocab": runs}, "tekken.json: vocab: the merges up to rank "},
		{settings{"special_tokens": []settings{{"token_str": "x"}}}, "special_tokens[0].rank: is missing"},
	} {
		_, err := parseTekken("tekken.json", tinyTekken(t, c.changes))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

func TestVocabAndMerges(t *testing.T) {
	vocab := map[string]int{}
	for i, token := range tinyRanks()[:262] {
		vocab[tokenizer.SpellBytes(token)] = i
	}
	text, err := json.Marshal(vocab)
	if err != nil {
		t.Fatal(err)
	}
	merges := []byte("#version: 0.2\nh e\nĠ t\r\nĠt he\ni n\nt h\nt he\n\n")
	files := map[string][]byte{tokenizerFile: nil, vocabFile: text, mergesFile: merges,
		addedTokensFile:     settings{"<|im_end|>": 262}.json(t),
		tokenizerConfigFile: settings{"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}.json(t)}
	c, err := withTokenizer(t, files, Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantMeta(t, c, map[string]any{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
		"tokenizer.ggml.eos_token_id": uint32(262)})
	wantWarning(t, c, "NFC is left out")
	tok, err := tokenizer.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Encode("the inn", tokenizer.EncodeOptions{}); !slices.Equal(got, []int32{261, 32, 259, 110}) {
		t.Errorf("got %d", got)
	}
	for _, c := range []struct {
		file, data, want string
	}{
		{vocabFile, "[]", "vocab.json: vocab: is [], want an object"},
		{vocabFile, `{"a":1`, "vocab.json: vocab: is not closed"},
		{mergesFile, "", "holds none of"},
		{mergesFile, "a b\nab\n", `merges.txt:2: is "ab", want two tokens with a space between them`},
		{mergesFile, "version https://git-lfs.github.com/spec/v1\n", "merges.txt: it is a Git LFS pointer"},
		{tokenizerConfigFile, "{}", "vocab.json: the file does not say how text is split into words"},
	} {
		old := files[c.file]
		files[c.file] = []byte(c.data)
		_, err := withTokenizer(t, files, Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
		files[c.file] = old
	}
}

// Hunyuan's ranks give the tokens and merges that llama.cpp's converter makes of them.
func TestHunyuanRanksShared(t *testing.T) {
	dir := shared.Path(t, "archs/hunyuan-moe")
	want, err := gguf.Open(dir + "/expected.gguf")
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	m, _ := archFolder(t, dir)
	copied := t.TempDir()
	for _, name := range []string{"hy.tiktoken", "tokenizer_config.json"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, copied, name, data)
	}
	c := &Checkpoint{dir: copied}
	if _, err := c.loadTokenizer(m, Options{}); err != nil {
		t.Fatal(err)
	}
	compareTokenizer(t, c.md, want.Metadata(), true)
}

// No file makes its parser allocate much more than it has bytes, whatever it claims.
func TestHostileAllocations(t *testing.T) {
	deep := settings{"config": settings{"default_vocab_size": maxVocab, "default_num_special_tokens": maxVocab}, "vocab": []settings{}}
	long := []byte(strings.Repeat("YWFh", 300) + " 16777216\n")
	for name, parse := range map[string]func() (int, error){
		"tekken": func() (int, error) { d := deep.json(t); _, err := parseTekken("tekken.json", d); return len(d), err },
		"ranks":  func() (int, error) { _, err := parseRanks("x.tiktoken", long); return len(long), err },
		"no line": func() (int, error) {
			d := make([]byte, 1<<20)
			_, err := parseRanks("x.tiktoken", d)
			return len(d), err
		},
		"ids": func() (int, error) {
			b := &bpeModel{vocab: map[string]int{"a": maxVocab}}
			_, err := b.vocabulary(0, nil, false, nil)
			return 1, err
		},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n, err := parse()
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > uint64(64*n+1<<19) {
			t.Errorf("%s: %d bytes allocated for %d (%v)", name, got, n, err)
		}
	}
}
