package calib_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/tokenizer"
)

// letters makes a token of every character; "<s>" is one of its own where special tokens are parsed.
type letters struct{ bos bool }

const bosID = 0

func (l letters) Encode(text string, opt tokenizer.EncodeOptions) []int32 {
	if !opt.NoBOS {
		panic("sampling sets BOS tokens itself")
	}
	var ids []int32
	for text != "" {
		if rest, ok := strings.CutPrefix(text, "<s>"); ok && opt.ParseSpecial {
			ids, text = append(ids, bosID), rest
			continue
		}
		r, n := utf8.DecodeRuneInString(text)
		ids, text = append(ids, r), text[n:]
	}
	return ids
}

func (l letters) BOS() (int32, bool) { return bosID, l.bos }

// counter returns a text of n characters in which no passage repeats: each character is a different rune.
func counter(first rune, n int) string {
	var b strings.Builder
	for i := range rune(n) {
		b.WriteRune(first + i)
	}
	return b.String()
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func sample(t *testing.T, paths []string, tok calib.Tokenizer, opt calib.Options) *calib.Set {
	t.Helper()
	set, err := calib.Sample(paths, tok, opt)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

const cjk = 0x4e00 // 20992 letters from here on

func TestStratified(t *testing.T) {
	a, b, c := write(t, "a.txt", counter(cjk, 6000)), write(t, "b.txt", counter(cjk+6000, 3000)), write(t, "c.txt", counter(cjk+9000, 1050))
	for _, n := range []int{1, 7, 50, 100} {
		set := sample(t, []string{a, b, c}, letters{}, calib.Options{Tokens: n*100 + 99, SeqLen: 100, Seed: 1})
		if len(set.Sequences) != n || set.Tokens() != n*100 || set.SeqLen != 100 {
			t.Fatalf("%d sequences, %d tokens; want %d sequences", len(set.Sequences), set.Tokens(), n)
		}
		// In proportion to what each file holds, by largest remainder.
		want := map[int][]int{1: {1, 0, 0}, 7: {4, 2, 1}, 50: {30, 15, 5}, 100: {60, 30, 10}}[n]
		for i, s := range set.Sources {
			if s.Sequences != want[i] {
				t.Errorf("of %d sequences, %s gives %d, want %d", n, s.Name(), s.Sequences, want[i])
			}
		}
		// One sequence lies in each of equal parts of a file, unbroken.
		at := 0
		for i, s := range set.Sources {
			first := int32(cjk + []int{0, 6000, 9000}[i])
			for k := range s.Sequences {
				seq := set.Sequences[at]
				at++
				lo, hi := first+int32(k*s.Tokens/s.Sequences), first+int32((k+1)*s.Tokens/s.Sequences)
				if seq[0] < lo || seq[0]+100 > hi {
					t.Errorf("%s, sequence %d: starts at %d, want a start in [%d,%d]", s.Name(), k, seq[0], lo, hi-100)
				}
				for j := range seq {
					if seq[j] != seq[0]+int32(j) {
						t.Fatalf("%s, sequence %d is not a stretch of the text", s.Name(), k)
					}
				}
			}
		}
	}
}

func TestSeed(t *testing.T) {
	path := write(t, "a.txt", counter(cjk, 20000))
	get := func(seed uint64) *calib.Set {
		return sample(t, []string{path}, letters{bos: true}, calib.Options{Tokens: 5000, SeqLen: 50, Seed: seed})
	}
	a, b, c := get(1), get(1), get(2)
	if !reflect.DeepEqual(a, b) {
		t.Error("the same seed gives another set")
	}
	if reflect.DeepEqual(a.Sequences, c.Sequences) || a.SHA256() == c.SHA256() {
		t.Error("another seed gives the same set")
	}
	for i, seq := range a.Sequences {
		if seq[0] != bosID || slices.Contains(seq[1:], bosID) {
			t.Fatalf("sequence %d does not begin with its only BOS token: %v", i, seq)
		}
	}
}

func TestDefaults(t *testing.T) {
	long := sample(t, []string{write(t, "a.txt", strings.Repeat(counter('0', 75)+"\n", 1000))}, letters{}, calib.Options{})
	if long.SeqLen != calib.DefaultSeqLen || long.Tokens()+long.Duplicates.Sequences*512 != calib.DefaultTokens {
		t.Errorf("%d tokens in sequences of %d", long.Tokens(), long.SeqLen)
	}
	// Another default is that of small models, which are calibrated on more.
	if calib.Enough(1e9-1) <= calib.Enough(1e9) || calib.Enough(1e9) != calib.DefaultTokens {
		t.Errorf("%d tokens for a small model, %d for another", calib.Enough(1e9-1), calib.Enough(1e9))
	}
	few := sample(t, []string{write(t, "f.txt", counter(cjk, 20000))}, letters{}, calib.Options{Enough: 8192})
	if few.Tokens() != 8192 {
		t.Errorf("%d tokens, want 8192", few.Tokens())
	}
	// Less than the default is all taken, unless it is too little to be of use or more was asked for.
	short := []string{write(t, "b.txt", counter(cjk, 5000))}
	set := sample(t, short, letters{}, calib.Options{})
	if set.Tokens() != 9*512 {
		t.Errorf("%d tokens of 5000", set.Tokens())
	}
	if !slices.ContainsFunc(set.Warnings, func(w string) bool { return strings.Contains(w, "4608 tokens instead of 65536") }) {
		t.Errorf("no word about it: %q", set.Warnings)
	}
	for _, opt := range []calib.Options{{Tokens: 5120}, {SeqLen: 3000}} {
		if _, err := calib.Sample(short, letters{}, opt); err == nil || !strings.Contains(err.Error(), "5000 tokens, enough for ") {
			t.Errorf("%+v: error %v", opt, err)
		}
	}
}

// lines makes a .jsonl file.
func lines(t *testing.T, records ...any) string {
	t.Helper()
	var b strings.Builder
	for _, r := range records {
		if s, ok := r.(string); ok {
			b.WriteString(s + "\n")
			continue
		}
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(append(line, '\n'))
	}
	return write(t, "set.jsonl", b.String())
}

type record struct {
	Text   string `json:"text"`
	Domain string `json:"domain,omitempty"`
}

func TestRecords(t *testing.T) {
	path := lines(t, record{Text: "first"}, "", `{"text":"", "id":7}`, record{Text: "second"}, `{"text":"first"}`)
	set := sample(t, []string{path}, letters{bos: true}, calib.Options{Tokens: 13, SeqLen: 13})
	want := append([]int32{bosID}, letters{}.Encode("first", tokenizer.EncodeOptions{NoBOS: true})...)
	want = append(append(want, bosID), letters{}.Encode("second", tokenizer.EncodeOptions{NoBOS: true})...)
	if !slices.Equal(set.Sequences[0], want) {
		t.Errorf("%v, want %v", set.Sequences[0], want)
	}
	if set.Duplicates.Documents != 1 || set.Sources[0].Tokens != 13 {
		t.Errorf("%+v, %+v; the document that repeats should be left out", set.Duplicates, set.Sources)
	}
}

func TestDomains(t *testing.T) {
	var records []any
	for i := range 40 {
		domain := "law"
		if i%4 == 3 {
			domain = "code"
		}
		records = append(records, record{counter(cjk+100*rune(i), 100), domain})
	}
	set := sample(t, []string{lines(t, records...)}, letters{}, calib.Options{Tokens: 2000, SeqLen: 50})
	var got []string
	for _, s := range set.Sources {
		got = append(got, fmt.Sprintf("%s %d %d", s.Name(), s.Tokens, s.Sequences))
	}
	if want := []string{"set.jsonl: law 3000 30", "set.jsonl: code 1000 10"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for i, seq := range set.Sequences {
		if code := (seq[0]-cjk)/100%4 == 3; code != (i >= 30) {
			t.Errorf("sequence %d is from the other domain", i)
		}
	}
}

func TestDuplicateSequences(t *testing.T) {
	// Whatever the places, a text with period 10 has at most 10 different sequences.
	set := sample(t, []string{write(t, "a.txt", strings.Repeat("0123456789", 1000))}, letters{}, calib.Options{Tokens: 2000, SeqLen: 50})
	if len(set.Sequences) > 10 || set.Duplicates.Sequences != 40-len(set.Sequences) || set.Sources[0].Sequences != len(set.Sequences) {
		t.Errorf("%d sequences, %+v, %+v", len(set.Sequences), set.Duplicates, set.Sources)
	}
	for i, a := range set.Sequences {
		for _, b := range set.Sequences[:i] {
			if slices.Equal(a, b) {
				t.Error("a sequence is there twice")
			}
		}
	}
	// The same file twice counts once.
	path := write(t, "b.txt", counter(cjk, 8192))
	set = sample(t, []string{path, path}, letters{}, calib.Options{Tokens: 8192, SeqLen: 64})
	if set.Sources[0].Sequences != 128 || set.Sources[1].Sequences != 0 || set.Duplicates.Documents != 1 {
		t.Errorf("%+v, %+v", set.Sources, set.Duplicates)
	}
}

func TestLongFile(t *testing.T) {
	const lineLen = 40
	number := func(seq []int32) string {
		var b strings.Builder
		for _, r := range seq {
			b.WriteRune(r)
		}
		return b.String()
	}
	var text, jsonl strings.Builder
	for i := range 2500 {
		fmt.Fprintf(&text, "%06d %s\n", i, strings.Repeat("é", 16)) // 40 bytes, 24 characters
		fmt.Fprintf(&jsonl, "{\"text\": \"%06d%s\"}\n", i, strings.Repeat(".", 22))
	}
	defer calib.SetFileLimits(50*lineLen*10, 10*lineLen)()
	for name, content := range map[string]string{"a.txt": text.String(), "a.jsonl": jsonl.String()} {
		path := write(t, name, content)
		set := sample(t, []string{path}, letters{}, calib.Options{Tokens: 9600, SeqLen: 24})
		// 50 pieces, each without the lines that it cuts, hold 440 to 500 lines.
		if n := set.Sources[0].Tokens; n < 10000 || n > 14000 {
			t.Errorf("%s: %d tokens are read", name, n)
		}
		all := ""
		for _, seq := range set.Sequences {
			all += number(seq)
		}
		for _, part := range []string{"0000", "0005", "0012", "0020", "0024"} {
			if !strings.Contains(all, part) {
				t.Errorf("%s: nothing is from the lines %s..", name, part)
			}
		}
	}
	// A text without line breaks is cut between characters.
	path := write(t, "b.txt", counter(cjk, 20000))
	if set := sample(t, []string{path}, letters{}, calib.Options{Tokens: 24, SeqLen: 24}); set.Sources[0].Tokens < 6000 {
		t.Errorf("%d tokens are read of a text without line breaks", set.Sources[0].Tokens)
	}
	bad := []byte(text.String())
	bad[80003] = 0xff
	_, err := calib.Sample([]string{write(t, "c.txt", string(bad))}, letters{}, calib.Options{Tokens: 24, SeqLen: 24})
	if err != nil && !strings.Contains(err.Error(), "0xff at offset 80003") {
		t.Errorf("error %v", err)
	}
	bad[3] = 0xff
	_, err = calib.Sample([]string{write(t, "c.txt", string(bad))}, letters{}, calib.Options{Tokens: 24, SeqLen: 24})
	if err == nil || !strings.Contains(err.Error(), "c.txt: not UTF-8: byte 0xff at offset 3") {
		t.Errorf("error %v", err)
	}
	_, err = calib.Sample([]string{write(t, "c.jsonl", jsonl.String()[:41*2400]+"{\"txet\":\"\"}\n")}, letters{}, calib.Options{Tokens: 24, SeqLen: 24})
	if err == nil || !strings.Contains(err.Error(), " after byte ") || !strings.Contains(err.Error(), "no \"text\"") {
		t.Errorf("error %v", err)
	}
}

func TestSampleErrors(t *testing.T) {
	text := write(t, "a.txt", counter(cjk, 5000))
	for _, c := range []struct {
		path string
		opt  calib.Options
		want string
	}{
		{filepath.Join(t.TempDir(), "none.txt"), calib.Options{}, "none.txt"},
		{t.TempDir(), calib.Options{}, "not a regular file"},
		{write(t, "empty.txt", ""), calib.Options{}, "empty.txt: no text"},
		{write(t, "blank.txt", " \n\t\n"), calib.Options{}, "blank.txt: no text"},
		{write(t, "empty.jsonl", "\n\n"), calib.Options{}, "empty.jsonl: no text"},
		{lines(t, record{}), calib.Options{}, "set.jsonl: no text"},
		{write(t, "latin.txt", "caf\xe9 au lait"), calib.Options{}, "latin.txt: not UTF-8: byte 0xe9 at offset 3"},
		{lines(t, record{Text: "x"}, "{\"text\":\"\xff\"}"), calib.Options{}, "set.jsonl:2: not UTF-8: byte 0xff at offset 9 of the line"},
		{lines(t, record{Text: "x"}, "", `{"content":"y"}`), calib.Options{}, `set.jsonl:3: no "text" field, nor "messages"`},
		{lines(t, `{"text":1}`), calib.Options{}, `set.jsonl:1: "text" is a number; want a string`},
		{lines(t, `{"text":"x"`), calib.Options{}, "set.jsonl:1: unexpected end"},
		{lines(t, `{"text":"x","messages":[{"role":"user"}]}`), calib.Options{}, `set.jsonl:1: both "text" and "messages"`},
		{lines(t, `{"messages":[{"role":"user"}]}`), calib.Options{}, `set.jsonl:1: "messages" need a chat template`},
		{lines(t, record{"x", "a"}, record{"y", ""}), calib.Options{}, `set.jsonl:2: no "domain", which `},
		{lines(t, record{"x", ""}, record{"y", "a"}), calib.Options{}, `set.jsonl:2: a "domain", which `},
		{text, calib.Options{Tokens: 6000}, "5000 tokens, enough for 9 sequences of 512; 6000 tokens are wanted"},
		{write(t, "short.txt", counter(cjk, 4000)), calib.Options{}, "4096 are the least that is of use"},
		{text, calib.Options{Tokens: math.MaxInt, HeldOut: math.MaxInt / 4}, "5000 tokens, enough for 9 sequences of 512"},
		{text, calib.Options{SeqLen: 1}, "65536 tokens in sequences of 1"},
		{text, calib.Options{SeqLen: -5}, "in sequences of -5"},
		{text, calib.Options{Tokens: 10}, "10 tokens in sequences of 512"},
		{text, calib.Options{Tokens: -1}, "-1 tokens"},
	} {
		if _, err := calib.Sample([]string{c.path}, letters{}, c.opt); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %+v: error %v, want %q", filepath.Base(c.path), c.opt, err, c.want)
		}
	}
	if _, err := calib.Sample(nil, letters{}, calib.Options{}); err == nil || !strings.Contains(err.Error(), "no text") {
		t.Errorf("no files: error %v", err)
	}
}

func TestWarnings(t *testing.T) {
	has := func(set *calib.Set, part string) bool {
		return slices.ContainsFunc(set.Warnings, func(w string) bool { return strings.Contains(w, part) })
	}
	a, b := write(t, "a.txt", counter(cjk, 9000)), write(t, "b.txt", counter(cjk+9000, 9000))
	set := sample(t, []string{a, b}, letters{}, calib.Options{Tokens: 10000, SeqLen: 100})
	if len(set.Warnings) != 0 {
		t.Errorf("a good set: %q", set.Warnings)
	}
	set = sample(t, []string{a, b}, letters{}, calib.Options{Tokens: 9900, SeqLen: 100})
	if !has(set, "99 sequences; fewer than 100") {
		t.Errorf("99 sequences: %q", set.Warnings)
	}
	set = sample(t, []string{a}, letters{}, calib.Options{Tokens: 5000, SeqLen: 50})
	if len(set.Warnings) != 1 || !has(set, "all text is of one source, a.txt: ") || !has(set, "a second, of another kind") {
		t.Errorf("one source: %q", set.Warnings)
	}
	set = sample(t, []string{a, write(t, "c.txt", counter(cjk+9000, 2000)), write(t, "d.txt", "tiny")}, letters{},
		calib.Options{Tokens: 10000, SeqLen: 100})
	if !has(set, "82% of the sequences come from one source, a.txt") || !has(set, "d.txt has 4 tokens, too few") {
		t.Errorf("an uneven set: %q", set.Warnings)
	}
}

func TestOverlap(t *testing.T) {
	set := sample(t, []string{write(t, "a.txt", counter(cjk, 10000))}, letters{}, calib.Options{Tokens: 10000, SeqLen: 1000})
	encode := func(s string) []int32 { return letters{}.Encode(s, tokenizer.EncodeOptions{NoBOS: true}) }
	for _, c := range []struct {
		text string
		want float64
	}{
		{counter(cjk+100, 200), 1},
		{counter(cjk+10000, 200), 0},
		{counter(cjk+100, 112) + counter(cjk+15000, 100), 0.5}, // 100 of 200 passages of 13 tokens
		{counter(cjk, 12), 0},
		{"", 0},
	} {
		if got := set.Overlap(encode(c.text)); got != c.want {
			t.Errorf("%d tokens: overlap %g, want %g", len(encode(c.text)), got, c.want)
		}
	}
	n := len(set.Warnings)
	set.WarnOverlap("other.txt", encode(counter(cjk+10000, 200)))
	set.WarnOverlap("test.txt", encode(counter(cjk+100, 200)))
	if len(set.Warnings) != n+1 || !strings.Contains(set.Warnings[n], "100.0% of the passages of 13 tokens in test.txt") {
		t.Errorf("%q", set.Warnings)
	}
}

func TestMetadata(t *testing.T) {
	a, b := write(t, "a.txt", counter(cjk, 9000)), write(t, "b.txt", "tiny")
	set := sample(t, []string{a, b}, letters{}, calib.Options{Tokens: 6000, SeqLen: 100})
	want := gguf.Metadata{
		{Key: "llmq.calibration.sequences", Value: uint32(60)},
		{Key: "llmq.calibration.sequence_length", Value: uint32(100)},
		{Key: "llmq.calibration.sources", Value: []string{"a.txt"}},
		{Key: "llmq.calibration.sha256", Value: set.SHA256()},
	}
	if got := set.Metadata(); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// printf '\x01\0\0\0\x2c\x01\0\0' | sha256sum
	small := calib.Set{SeqLen: 2, Sequences: [][]int32{{1, 300}}}
	if got, want := small.SHA256(), "3d39c1cd1d33bc4e88dde69aae6ba839c75c2483a9003b9877e2182f951c258e"; got != want {
		t.Errorf("SHA-256 %s, want %s", got, want)
	}
}

func TestHoldOut(t *testing.T) {
	a, b := write(t, "a.txt", counter(cjk, 3000)), write(t, "b.txt", counter(cjk+3000, 9000))
	for n, want := range map[int]int{0: 0, 1: 1, 8: 8, 119: 119, 120: 119} {
		set := sample(t, []string{a, b}, letters{}, calib.Options{Tokens: 12000, SeqLen: 100})
		before := slices.Concat(set.Sequences...)
		held := set.HoldOut(n)
		if len(held) != 100*want || len(set.Sequences) != 120-want || set.Sources[0].Sequences+set.Sources[1].Sequences != 120-want {
			t.Errorf("%d held out: %d tokens, %d sequences left, %+v", n, len(held), len(set.Sequences), set.Sources)
		}
		all := append(slices.Concat(set.Sequences...), held...)
		slices.Sort(all)
		slices.Sort(before)
		if !slices.Equal(all, before) {
			t.Errorf("%d held out: something is lost", n)
		}
		fromA := 0
		for _, seq := range set.Sequences {
			if seq[0] < cjk+3000 {
				fromA++
			}
		}
		if set.Sources[0].Sequences != fromA {
			t.Errorf("%d held out: %d sequences are said to be from a.txt, %d are", n, set.Sources[0].Sequences, fromA)
		}
	}
}
