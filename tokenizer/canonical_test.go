package tokenizer

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestCanonical(t *testing.T) {
	for _, same := range [][]string{
		{`[^\s\p{L}\p{N}]+[\r\n]*`, `[^\p{N}\s\p{L}]+[\n\r]*`, "[^\\s\\p{L}\\p{N}]+[\r\n]*",
			`[^\s\p{L}\p{N}\s]+[\r\n]*`},
		{contractions + `|x`, `(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|x`, `'(?i:[sdmt]|ll|ve|re)|x`},
		{`\p{N}`, `\p{N}{1}`},
		{`[a-z\-0]`, `[0\-a-z]`},
	} {
		for _, p := range same[1:] {
			if got, want := canonical(p), canonical(same[0]); got != want {
				t.Errorf("%s becomes %s, %s becomes %s", p, got, same[0], want)
			}
		}
	}
	for _, differ := range [][2]string{
		{`\p{N}{1,3}`, `\p{N}`},
		{`[ab]`, `[^ab]`},
		{`[a-c]`, `[ac-]`},
		{`a|b`, `b|a`}, // the first alternative that matches wins
		{`\[ab]`, `\[ba]`},
	} {
		if canonical(differ[0]) == canonical(differ[1]) {
			t.Errorf("%s and %s become the same", differ[0], differ[1])
		}
	}
}

// Each row's forms find the row, and names are not given twice.
func TestPres(t *testing.T) {
	seen := map[string]bool{}
	for i := range pres {
		for _, name := range pres[i].Names {
			if seen[name] {
				t.Errorf("%s stands in two rows", name)
			}
			seen[name] = true
			if p, ok := PreByName(name); !ok || p != &pres[i] {
				t.Errorf("%s is not found", name)
			}
		}
		for _, form := range pres[i].HF {
			found := false
			for _, p := range PresBySteps(form) {
				found = found || p == &pres[i]
			}
			if !found {
				t.Errorf("%s is not found by %q", pres[i].Names[0], form)
			}
		}
	}
	if got := PresBySteps([]string{`\w+`}); got != nil {
		t.Errorf(`\w+ is taken for %s`, got[0].Names[0])
	}
	if len(PreNames()) != len(seen) {
		t.Errorf("%d names, want %d", len(PreNames()), len(seen))
	}
}

// tiktoken's spellings split as Llama 3's and Qwen 2's do, which is why one row holds both.
func TestTiktokenSpelling(t *testing.T) {
	for _, p := range [][2]string{{llama3Pattern, tikPattern}, {qwen2Pattern, lingPattern}} {
		want, err := patternSplitter(p[0])
		if err != nil {
			t.Fatal(err)
		}
		// regexp2 writes X?+ and X++ as atomic groups.
		got, err := regexSplitter(strings.NewReplacer(`[^\r\n\p{L}\p{N}]?+`, `(?>[^\r\n\p{L}\p{N}]?)`,
			`[^\s\p{L}\p{N}]++`, `(?>[^\s\p{L}\p{N}]+)`).Replace(p[1]))
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(9, 10))
		for range 2000 {
			text := randomText(rng)
			if g, w := split(got, text), split(want, text); !slices.Equal(g, w) {
				t.Fatalf("%q:\n got %q\nwant %q", text, g, w)
			}
		}
	}
}
