package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// absurd are values in the place of others in JSON.
var absurd = []string{"-1", "0", "1", "7", "65536", "2147483648", "9007199254740993", "18446744073709551616", "1e308", "-1e999", "0.5", "NaN",
	"null", "true", "[]", "{}", `""`, `"x"`, "[[1]]", `{"a":1}`}

var valuesInJSON = regexp.MustCompile(`-?\d+(\.\d+)?(e-?\d+)?|true|false|null|"(\\.|[^"\\])*"`)

// damage cuts a file off, flips bits, or puts an absurd number somewhere, mostly where its header is.
func damage(rng *rand.Rand, name string, data []byte) (damaged []byte, what string) {
	data = slices.Clone(data)
	at := rng.IntN(len(data))
	if rng.IntN(3) > 0 {
		at = rng.IntN(min(len(data), 2048))
	}
	if strings.HasSuffix(name, ".json") {
		if all := valuesInJSON.FindAllIndex(data, -1); len(all) > 0 && rng.IntN(4) > 0 {
			v, with := all[rng.IntN(len(all))], absurd[rng.IntN(len(absurd))]
			what = fmt.Sprintf("%.40q at %d is %s", data[v[0]:v[1]], v[0], with)
			return slices.Concat(data[:v[0]], []byte(with), data[v[1]:]), what
		}
	}
	switch rng.IntN(4) {
	case 0:
		return data[:at], fmt.Sprintf("cut off at %d", at)
	case 1:
		number := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		number[7] >>= rng.IntN(8)
		n := copy(data[at:], number[rng.IntN(8):])
		return data, fmt.Sprintf("a large number of %d bytes at %d", n, at)
	case 2:
		n := min(1+rng.IntN(64), len(data)-at)
		return slices.Delete(data, at, at+n), fmt.Sprintf("%d bytes missing at %d", n, at)
	}
	bit := rng.IntN(8)
	data[at] ^= 1 << bit
	return data, fmt.Sprintf("bit %d flipped at %d", bit, at)
}

// TestHostile damages one file of a checkpoint, or a GGUF file, and has the commands read it: an error or a result, but no
// panic, no memory beyond what the files are worth, and no output or part of one where there is an error.
func TestHostile(t *testing.T) {
	const inputs = 60
	ckpt, out := folder(t, "llama"), t.TempDir()
	gguf := filepath.Join(t.TempDir(), "model.gguf")
	must(t, "convert", ckpt, "-o", gguf)
	files, err := filepath.Glob(filepath.Join(ckpt, "*"))
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, gguf, gguf, gguf)
	short := textFile(t, "short.txt", strings.Repeat("It was the best of times. ", 20))
	lines := []string{"inspect MODEL", "convert MODEL -o OUT --type q8_0", "convert MODEL -o OUT --dry-run", "tokenize MODEL --text " + short,
		"eval MODEL --context 16 --chunks 1 --text " + short,
		"inspect MODEL --json", "quantize MODEL -o OUT --type q4_0 --seq-len 16 --calib-tokens 64 --calib " + short}
	for i := range inputs {
		rng := rand.New(rand.NewPCG(uint64(i), 12))
		path := files[rng.IntN(len(files))]
		whole := read(t, path)
		damaged, what := damage(rng, path, whole)
		if err := os.WriteFile(path, damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		line := lines[rng.IntN(len(lines))]
		target := ckpt
		if path == gguf {
			target = gguf
		}
		args := strings.Fields(strings.NewReplacer("MODEL", target, "OUT", filepath.Join(out, "out")).Replace(line))
		what = fmt.Sprintf("%d: %s, %s: %s", i, filepath.Base(path), what, line)
		t.Run("", func(t *testing.T) { // a panic ends all: say where
			defer func() {
				if v := recover(); v != nil {
					t.Logf("%s", what)
					panic(v)
				}
			}()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r := llmq(t, args...)
			runtime.ReadMemStats(&after)
			if r.code != exitOK && (r.code != exitFailure || !strings.Contains(r.stderr, "llmq: ") || len(listing(t, out)) != 1) {
				t.Errorf("%s: exit %d, %q, left %v", what, r.code, r.stderr, listing(t, out))
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 128<<20 {
				t.Errorf("%s: %d bytes were allocated", what, used)
			}
		})
		os.Remove(filepath.Join(out, "out"))
		if err := os.WriteFile(path, whole, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
