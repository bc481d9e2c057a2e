package eval_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/tokenizer"
)

func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, path string) *eval.Task {
	t.Helper()
	task, err := eval.LoadTask(path)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func TestLoadTask(t *testing.T) {
	mc := load(t, file(t, "a.jsonl", `{"question":"2 + 2 =","choices":["3","4"],"answer":1}

{"question":"Letter? ","choices":["x y","z"," w"],"answer":"C","id":7}
{"question":"","choices":["A","B"],"answer":"B"}`))
	want := []eval.Example{
		{Line: 1, Context: "2 + 2 =", Choices: []string{" 3", " 4"}, Answer: 1},
		{Line: 3, Context: "Letter? ", Choices: []string{"x y", "z", " w"}, Answer: 2},
		{Line: 4, Context: "", Choices: []string{"A", "B"}, Answer: 1},
	}
	if mc.Kind != eval.MultipleChoice || !reflect.DeepEqual(mc.Examples, want) {
		t.Errorf("%s %+v", mc.Kind, mc.Examples)
	}
	words := load(t, file(t, "a.JSONL", `{"text":"She said hello  there. \n"}`))
	want = []eval.Example{{Line: 1, Context: "She said hello ", Choices: []string{" there."}}}
	if words.Kind != eval.LastWord || !reflect.DeepEqual(words.Examples, want) {
		t.Errorf("%s %+v", words.Kind, words.Examples)
	}
	const first, second = `{"text":"a b","question":null}`, `{"text":"c d"}`
	for name, content := range map[string]string{
		"a.jsonl": "\ufeff" + first + "\r\n" + second, "a.ndjson": first + "\n" + second, "a.json": "[\n" + first + ",\n" + second + "]",
		"a.txt": first + "\n" + second + "\n",
	} {
		task := load(t, file(t, name, content))
		if e := task.Examples; task.Kind != eval.LastWord || len(e) != 2 || e[0].Context != "a" || e[1].Context != "c" || e[1].Line-e[0].Line != 1 {
			t.Errorf("%s: %s %+v", name, task.Kind, e)
		}
	}
	swag := load(t, file(t, "a.txt", "\ufeffCooking: He\r\n2\r\nruns\r\nsits\r\ncooks.\r\nflies\r\nctx\n0\na\nb\nc\nd\n\n"))
	want = []eval.Example{
		{Line: 1, Context: "Cooking: He", Choices: []string{" runs", " sits", " cooks.", " flies"}, Answer: 2},
		{Line: 7, Context: "ctx", Choices: []string{" a", " b", " c", " d"}},
	}
	if swag.Kind != eval.HellaSwag || !reflect.DeepEqual(swag.Examples, want) {
		t.Errorf("%s %+v", swag.Kind, swag.Examples)
	}
}

func TestLoadTaskErrors(t *testing.T) {
	const ok = `{"question":"q","choices":["a","b"],"answer":0}` + "\n"
	for _, c := range []struct{ name, content, want string }{
		{"a.jsonl", "", "the text is empty"},
		{"a.jsonl", "\n\n", "no examples"},
		{"a.jsonl", ok + "{", "a.jsonl:2: unexpected end"},
		{"a.jsonl", ok + "\n[1]", "a.jsonl:3: record 1: a number where a record is wanted"},
		{"a.jsonl", `{"question":{"stem":"q"},"choices":["a","b"],"answer":0}`, `a.jsonl:1: "question" is an object; want a string`},
		{"a.jsonl", `{"question":"q","choices":{"text":["a","b"]},"answer":0}`, `"choices" is an object; want a list`},
		{"a.jsonl", `{"question":"q","choices":["a",{"text":"b"}],"answer":0}`, `"choices"[1] is an object; want a string`},
		{"a.jsonl", `{"question":"q","choices":["a",null],"answer":0}`, `"choices"[1] is null; want a string`},
		{"a.jsonl", `{"Question":"q","opts":["a","b"]}`, `the fields are "Question", "opts"`},
		{"a.jsonl", `{"question":"q","choices":["a","b"],"answer":null}`, `no "answer"`},
		{"a.json", "[\n" + strings.TrimSpace(ok) + ",\n{}]", "a.json:3: record 2: no \"question\", nor \"text\"; there are no fields"},
		{"a.jsonl", `{"choices":["a","b"],"answer":0}`, `a.jsonl:1: no "question", nor "text"`},
		{"a.jsonl", `{"text":"x y","question":"q"}`, `both "text" and "question"`},
		{"a.jsonl", `{"question":"q","choices":["a"],"answer":0}`, `"choices": 1; need 2 or more`},
		{"a.jsonl", `{"question":"q","answer":0}`, `no "choices" beside "question"`},
		{"a.jsonl", `{"question":"q","choices":[],"answer":0}`, `"choices": 0; need 2 or more`},
		{"a.jsonl", `{"question":"q","choices":["a"," "],"answer":0}`, `"choices"[1] is empty`},
		{"a.jsonl", `{"question":"q","choices":["a","b"]}`, `a.jsonl:1: no "answer"`},
		{"a.jsonl", `{"question":"q","choices":["a","b"],"answer":2}`, `"answer" 2: want an index below 2`},
		{"a.jsonl", `{"question":"q","choices":["a","b"],"answer":-1}`, `"answer" -1`},
		{"a.jsonl", `{"question":"q","choices":["a","b"],"answer":0.5}`, `"answer" 0.5`},
		{"a.jsonl", `{"question":"q","choices":["a","b"],"answer":"C"}`, `"answer" "C" is none of the choices`},
		{"a.jsonl", `{"question":"q","choices":["a","a"],"answer":"a"}`, "two choices read so"},
		{"a.jsonl", `{"text":"word"}`, "no word before its last one"},
		{"a.jsonl", `{"text":"  word  "}`, "no word before its last one"},
		{"a.jsonl", ok + `{"text":"x y"}`, "a.jsonl:2: a last-word example among multiple-choice examples"},
		{"a.txt", "c\n0\na\nb\nc", "a.txt:1: 5 lines are left"},
		{"a.txt", "c\n0\na\nb\nc\nd\ne\n", "a.txt:7: 1 lines are left"},
		{"a.txt", "c\n4\na\nb\nc\nd\n", `a.txt:2: "4": want the index of the right ending, 0 to 3`},
		{"a.txt", "c\nx\na\nb\nc\nd\n", `a.txt:2: "x"`},
		{"a.txt", "c\n0\na\n\nc\nd\n", "a.txt:4: the line is empty"},
		{"a.txt", "c\xff\n0\na\nb\nc\nd\n", "byte 0xff at offset 1"},
	} {
		if _, err := eval.LoadTask(file(t, c.name, c.content)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want %q", c.content, err, c.want)
		}
	}
}

// runTask runs a task on a test model with its own tokenizer.
func runTask(t *testing.T, tm *testmodel.Model, task *eval.Task, opt eval.TaskOptions) *eval.TaskResult {
	t.Helper()
	src := tm.Source()
	tok, err := tokenizer.New(src)
	if err != nil {
		t.Fatal(err)
	}
	res, err := eval.RunTask(context.Background(), open(t, src), tok, task, opt)
	if err != nil {
		t.Fatal(err)
	}
	if res.Seconds <= 0 {
		t.Errorf("%g s", res.Seconds)
	}
	res.Seconds = 0
	return res
}

// questions makes examples of all lengths.
func questions(kind eval.TaskKind, n int) *eval.Task {
	const words = "the func and then over return string in a range of things that ends here or there"
	w := strings.Fields(words)
	task := &eval.Task{Path: "made", Kind: kind}
	for i := range n {
		e := eval.Example{Line: i + 1, Context: strings.Repeat("x", i%3) + strings.Join(w[i%5:5+i%7+i%5], " ")}
		choices := 4
		switch kind {
		case eval.LastWord:
			choices = 1
		case eval.MultipleChoice:
			choices = 2 + i%3
		}
		for c := range choices {
			e.Choices = append(e.Choices, " "+strings.Join(w[(i+c)%9:(i+c)%9+1+(i*c)%4], " "))
		}
		e.Answer = i % choices
		task.Examples = append(task.Examples, e)
	}
	return task
}

// common is how many tokens a and b begin with alike.
func common(a, b []int32) int {
	for n := range min(len(a), len(b)) {
		if a[n] != b[n] {
			return n
		}
	}
	return min(len(a), len(b))
}

// TestTask compares with the definitions: each choice by itself through the float64 forward pass.
func TestTask(t *testing.T) {
	for _, name := range []string{"llama3-tied", "qwen3", "mistral"} { // with BOS, without, with a window
		tm := testmodel.New(name)
		tok, err := tokenizer.New(tm.Source())
		if err != nil {
			t.Fatal(err)
		}
		bos, addBOS := tok.BOS()
		encode := func(s string) []int32 {
			ids := tok.Encode(s, tokenizer.EncodeOptions{NoBOS: true})
			if addBOS {
				ids = append([]int32{bos}, ids...)
			}
			return ids
		}
		for _, kind := range []eval.TaskKind{eval.MultipleChoice, eval.HellaSwag, eval.LastWord} {
			task := questions(kind, 9)
			if kind == eval.HellaSwag {
				task.Examples[3].Choices[2] = task.Examples[3].Choices[0] + "!" // begins as another does
			}
			var acc, norm, perToken, nll []float64
			for _, e := range task.Examples {
				var all [][]int32
				for _, c := range e.Choices {
					all = append(all, encode(e.Context+c))
				}
				var sums, chars, tokens []float64
				greedy := true
				shared := len(all[0]) // tokens that all choices begin with
				for _, ids := range all {
					shared = min(shared, common(ids, all[0]))
				}
				for i, ids := range all {
					first := common(ids, encode(e.Context))
					if kind == eval.HellaSwag {
						first = shared
					}
					first = min(first, len(ids)-1)
					logits := tm.Forward(ids).Logits
					sum := 0.0
					for p := first; p < len(ids); p++ {
						lp := logSoftmax(logits[p-1])
						sum += lp[ids[p]]
						if lp[ids[p]] != slices.Max(lp) {
							greedy = false
						}
					}
					sums = append(sums, sum)
					chars = append(chars, sum/float64(utf8.RuneCountInString(e.Choices[i])-1))
					tokens = append(tokens, sum/float64(len(ids)-first))
				}
				right := func(x []float64) float64 {
					if slices.Index(x, slices.Max(x)) == e.Answer {
						return 1
					}
					return 0
				}
				if kind == eval.LastWord {
					nll = append(nll, -sums[0])
					acc = append(acc, map[bool]float64{true: 1}[greedy])
					continue
				}
				acc, norm, perToken = append(acc, right(sums)), append(norm, right(chars)), append(perToken, right(tokens))
			}
			r := runTask(t, tm, task, eval.TaskOptions{})
			compare := func(what string, m *eval.Measure, each []float64, exp bool) {
				t.Helper()
				if (m == nil) != (each == nil) {
					t.Fatalf("%s %s: %s %+v", name, kind, what, m)
				}
				if m == nil {
					return
				}
				mean, stderr := moments(each)
				if exp {
					mean = math.Exp(mean)
					stderr *= mean
				}
				if math.Abs(float64(m.Value)-mean) > 1e-4*mean || math.Abs(float64(m.StdErr)-stderr) > 1e-3*stderr {
					t.Errorf("%s %s: %s %g ± %g, want %g ± %g", name, kind, what, m.Value, m.StdErr, mean, stderr)
				}
			}
			compare("accuracy", r.Accuracy, acc, false)
			compare("per character", r.AccuracyNorm, norm, false)
			compare("per token", r.AccuracyPerToken, perToken, false)
			compare("perplexity", r.Perplexity, nll, true)
			if r.Kind != kind || r.Examples != 9 {
				t.Errorf("%s, %d examples", r.Kind, r.Examples)
			}
		}
	}
}

// TestGreedy asks for words that the model would write, and for others.
func TestGreedy(t *testing.T) {
	tm := testmodel.New("qwen3")
	tok, err := tokenizer.New(tm.Source())
	if err != nil {
		t.Fatal(err)
	}
	task := &eval.Task{Kind: eval.LastWord}
	for i := 0; len(task.Examples) < 4 && i < 500; i++ {
		context := fmt.Sprintf("some context %d", i)
		ids := tok.Encode(context, tokenizer.EncodeOptions{NoBOS: true})
		logits := tm.Forward(ids).Logits
		last := logits[len(logits)-1]
		next := tok.Token(int32(slices.Index(last, slices.Max(last))))
		whole := tok.Encode(context+next, tokenizer.EncodeOptions{NoBOS: true})
		if len(whole) == len(ids)+1 && slices.Equal(whole[:len(ids)], ids) {
			task.Examples = append(task.Examples, eval.Example{Line: i, Context: context, Choices: []string{next}},
				eval.Example{Line: i, Context: context, Choices: []string{next + "~"}})
		}
	}
	if len(task.Examples) < 2 {
		t.Fatal("the model continues nothing with a token that stays by itself")
	}
	if r := runTask(t, tm, task, eval.TaskOptions{}); r.Accuracy.Value != 0.5 {
		t.Errorf("accuracy %g, want 0.5", r.Accuracy.Value)
	}
}

// TestTaskInvariance: neither threads, batches, where hidden states are kept nor the order of examples change a result.
func TestTaskInvariance(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	tm := testmodel.New("llama-linear")
	task := questions(eval.MultipleChoice, 20)
	want := runTask(t, tm, task, eval.TaskOptions{})
	for threads, opt := range []eval.TaskOptions{{}, {BatchTokens: 1}, {Memory: 1, TempDir: t.TempDir()}, {BatchTokens: 50, Memory: 1, TempDir: t.TempDir()}} {
		runtime.GOMAXPROCS(threads%3 + 1)
		if threads == 3 {
			defer eval.SetHeadValues(1)()
		}
		if got := runTask(t, tm, task, opt); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v: %+v, want %+v", opt, got.Accuracy, want.Accuracy)
		}
	}
	reversed := &eval.Task{Kind: task.Kind, Examples: slices.Clone(task.Examples)}
	slices.Reverse(reversed.Examples)
	if got := runTask(t, tm, reversed, eval.TaskOptions{}); got.Accuracy.Value != want.Accuracy.Value {
		t.Errorf("reversed: %g, want %g", got.Accuracy.Value, want.Accuracy.Value)
	}
	if got := runTask(t, tm, task, eval.TaskOptions{Limit: 7}); got.Examples != 7 {
		t.Errorf("%d examples of 7", got.Examples)
	}
	p := &progress{}
	runTask(t, tm, task, eval.TaskOptions{Progress: p})
	if done := p.done.Load(); done != p.total || p.total == 0 {
		t.Errorf("%d of %d units were reported done", done, p.total)
	}
}

func TestCompare(t *testing.T) {
	for _, kind := range []eval.TaskKind{eval.MultipleChoice, eval.LastWord} {
		task := questions(kind, 12)
		a, b := runTask(t, testmodel.New("qwen3"), task, eval.TaskOptions{}), runTask(t, testmodel.New("mistral"), task, eval.TaskOptions{})
		value := b.Accuracy.Value
		a.Compare(b)
		if m := a.Accuracy; *m.Base != value || *m.Difference != m.Value-value || *m.DifferenceStdErr < 0 {
			t.Errorf("%+v", m)
		}
		if m := a.Perplexity; m != nil && (*m.Difference != m.Value-b.Perplexity.Value || !(*m.DifferenceStdErr > 0)) {
			t.Errorf("%+v", m)
		}
		again := runTask(t, testmodel.New("qwen3"), task, eval.TaskOptions{})
		again.Compare(runTask(t, testmodel.New("qwen3"), task, eval.TaskOptions{}))
		if *again.Accuracy.Difference != 0 || *again.Accuracy.DifferenceStdErr != 0 {
			t.Errorf("a model against itself: %+v", again.Accuracy)
		}
		out, err := json.Marshal(again)
		if err != nil || !strings.Contains(string(out), `"accuracy":{"value":`) || !strings.Contains(string(out), `"difference_stderr":0`) {
			t.Errorf("%s, %v", out, err)
		}
	}
}

func TestTaskErrors(t *testing.T) {
	tm := testmodel.New("qwen2")
	src := tm.Source()
	tok, err := tokenizer.New(src)
	if err != nil {
		t.Fatal(err)
	}
	long := questions(eval.MultipleChoice, 3)
	long.Examples[2].Context = strings.Repeat("a b ", 200)
	short := questions(eval.LastWord, 2)
	short.Examples[1].Context, short.Examples[1].Choices = "", []string{"a"}
	broken := tm.Source()
	broken.Find("blk.1.ffn_up.weight").Data[1] = 0x7f
	broken.Find("blk.1.ffn_up.weight").Data[0] = 0x80
	for _, c := range []struct {
		src  *testmodel.Source
		task *eval.Task
		opt  eval.TaskOptions
		want string
	}{
		{src, long, eval.TaskOptions{}, "made:3: 604 tokens"},
		{src, long, eval.TaskOptions{}, "the context of testmodel/qwen2 is 256"},
		{src, short, eval.TaskOptions{}, "made:2: \"a\" is 1 tokens"},
		{src, questions(eval.LastWord, 2), eval.TaskOptions{Memory: 1, TempDir: "/nonexistent"}, "hidden states"},
		{broken, questions(eval.LastWord, 2), eval.TaskOptions{}, "made:1: the prediction is not a finite number"},
	} {
		if _, err := eval.RunTask(context.Background(), open(t, c.src), tok, c.task, c.opt); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
	for _, at := range []string{"layer 2/2", "head"} {
		ctx, cancel := context.WithCancel(context.Background())
		p := &progress{cancelAt: at, cancel: cancel}
		_, err = eval.RunTask(ctx, open(t, src), tok, questions(eval.HellaSwag, 3), eval.TaskOptions{Progress: p})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled at %s: error %v", at, err)
		}
	}
}

// FuzzTask: whatever a task's file holds is refused or gives examples whose answer is one of their choices.
func FuzzTask(f *testing.F) {
	for _, content := range []string{
		`{"question": "q", "choices": ["a", "b"], "answer": 1}` + "\r\n" + `{"question": "q", "choices": ["a", "b"], "answer": "B"}`,
		`[{"text": "the last word"}]`, "\xef\xbb\xbf{\"question\": \"q\", \"choices\": [\"1\", \"2\"], \"answer\": \"2\"}",
		"A context\n2\none\ntwo\nthree\nfour\n", "A context\n9\none\ntwo\nthree\nfour\n",
	} {
		f.Add(true, []byte(content))
		f.Add(false, []byte(content))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, records bool, content []byte) {
		path := filepath.Join(dir, "task.txt")
		if records {
			path = filepath.Join(dir, "task.jsonl")
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		task, err := eval.LoadTask(path)
		if err != nil {
			return
		}
		for _, e := range task.Examples {
			if len(task.Examples) > len(content) || len(e.Choices) > 0 && (e.Answer < 0 || e.Answer >= len(e.Choices)) {
				t.Errorf("answer %d of %q", e.Answer, e.Choices)
			}
		}
	})
}
