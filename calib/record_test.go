package calib_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/calib"
)

// turns is a template that shows roles and contents.
const turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"

// TestLayouts: every layout of a record that is taken, and the text that it gives.
func TestLayouts(t *testing.T) {
	for record, want := range map[string]string{
		`{"text":"a b"}`: "a b",
		`{"text":"a","messages":null,"conversations":null}`:                                                            "a",
		`{"text":"a","instruction":"i","output":"o","id":[1]}`:                                                         "a", // as in tatsu-lab/alpaca, whose text is the other fields rendered
		`{"text":null,"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}`:                  "<user>q<assistant>a",
		`{"messages":[{"role":"user","content":"q"}],"prompt":"q"}`:                                                    "<user>q",
		`{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a","weight":1}]}`:                       "<user>q<assistant>a",
		`{"conversations":[{"from":"system","value":"s"},{"from":"user","value":"q"},{"from":"chatgpt","value":"a"}]}`: "<system>s<user>q<assistant>a",
		`{"system":"s","conversations":[{"from":"human","value":"<q> & \"z\""}]}`:                                      `<system>s<user><q> & "z"`,
		`{"conversations":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}`:                         "<user>q<assistant>a",
		`{"instruction":"i","input":"in","output":"o"}`:                                                                "<user>i\nin<assistant>o",
		`{"instruction":"i","input":"","output":"o"}`:                                                                  "<user>i<assistant>o",
		`{"instruction":"i","input":null,"output":"o"}`:                                                                "<user>i<assistant>o",
		`{"system":"s","history":[["q","a"]],"instruction":"i","output":"o"}`:                                          "<system>s<user>q<assistant>a<user>i<assistant>o",
		`{"prompt":"The sky is","completion":" blue."}`:                                                                "The sky is blue.",
		`{"prompt":[{"role":"user","content":"q"}],"completion":[{"role":"assistant","content":"a"}]}`:                 "<user>q<assistant>a",
	} {
		got, err := calib.Documents(write(t, "a.jsonl", record), template(turns))
		if err != nil || !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %q, %v; want %q", record, got, err, want)
		}
	}
	for record, want := range map[string]string{
		`{}`:                                                `no "text" field, nor "messages", "conversations", "instruction" with "output" or "prompt" with "completion"; there are no fields`,
		`{"content":"x","id":1}`:                            `the fields are "content", "id"`,
		`{"Text":"x"}`:                                      `the fields are "Text"`,
		`{"text":null}`:                                     "there are no fields",
		`{"instruction":"i"}`:                               `the fields are "instruction"`,
		`{"prompt":"p","response":"r"}`:                     `the fields are "prompt", "response"`,
		`{"question":"q","answer":"a"}`:                     `the fields are "answer", "question"`,
		`{"chosen":[],"rejected":[]}`:                       `the fields are "chosen", "rejected"`,
		`{"text":["a"]}`:                                    `"text" is a list; want a string`,
		`{"text":{"0":"a"}}`:                                `"text" is an object; want a string`,
		`{"text":"a","domain":5}`:                           `"domain" is a number; want a string`,
		`{"text":"a","conversations":[]}`:                   `both "text" and "conversations"`,
		`{"messages":[],"conversations":[]}`:                `both "messages" and "conversations"`,
		`{"conversations":[]}`:                              `"conversations" is empty`,
		`{"conversations":"x"}`:                             `"conversations" is a string; want a list`,
		`{"conversations":["x"]}`:                           `"conversations"[0]: a string where a record is wanted`,
		`{"conversations":[{"from":"human"}]}`:              `"conversations"[0]: want "from" and "value", or "role" and "content"; the fields are "from"`,
		`{"conversations":[{"from":"human","value":null}]}`: `"conversations"[0]: want "from" and "value"`,
		`{"conversations":[{"from":"function_call","value":""}]}`: `"conversations"[0]: "from" is "function_call"; want system, human, user, gpt, chatgpt or assistant`,
		`{"conversations":[{"from":"human","value":7}]}`:          `"value" is a number; want a string`,
		`{"instruction":"i","output":["o"]}`:                      `"output" is a list; want a string`,
		`{"instruction":"i","output":"o","history":[["q"]]}`:      `"history"[0] is not a list of two strings`,
		`{"prompt":"p","completion":["c"]}`:                       `"prompt" and "completion": want two strings, or two lists of messages`,
		`[{"role":"user","content":"q"}]`:                         `record 1: no "text" field`,
		`["text"]`:                                                "record 1: a string where a record is wanted",
	} {
		_, err := calib.Documents(write(t, "a.jsonl", `{"text":"ok"}`+"\n"+record), template(turns))
		if err == nil || !strings.Contains(err.Error(), "a.jsonl:2: ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "unmarshal") {
			t.Errorf("%s: %v; want %q", record, err, want)
		}
	}
}

// TestForms: the same two records in every form of file that holds records give the same two texts.
func TestForms(t *testing.T) {
	const a, b = `{"text":"first\r\n","n":null}`, `{"text":"second"}`
	want := []string{"first\r\n", "second"}
	const bom = "\ufeff"
	for _, c := range []struct{ name, content string }{
		{"a.jsonl", a + "\n" + b}, {"a.JSONL", a + "\n" + b + "\n"}, {"a.ndjson", a + "\r\n" + b + "\r\n"}, {"a.json", a + "\n" + b},
		{"a.jsonl", bom + a + "\n\n" + b}, {"a.json", "[" + a + ", " + b + "]"}, {"a.json", bom + "[\n  " + a + ",\n  " + b + "\n]\n"},
		{"a.jsonl", "[" + a + "," + b + "]"}, {"a.jsonl", "{\n\"text\":\n \"first\\r\\n\"\n}\n" + b},
		{"a.txt", a + "\n" + b}, {"a", bom + a + "\r\n" + b}, {"a.txt", "[" + a + "," + b + "]"},
	} {
		if got, err := calib.Documents(write(t, c.name, c.content), nil); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s %q: %q, %v", c.name, c.content, got, err)
		}
	}
	// What only looks like JSON at the start is prose; what begins as records and goes on as prose is refused.
	for _, prose := range []string{"{ return }\n", "[1] A reference.\n", "{}\n[]\n", "Say {\"text\": \"x\"}\n"} {
		if got, err := calib.Documents(write(t, "a.txt", prose), nil); err != nil || !slices.Equal(got, []string{prose}) {
			t.Errorf("%q: %q, %v", prose, got, err)
		}
	}
	if _, err := calib.Documents(write(t, "a.txt", a+"\nand so on\n"), nil); err == nil || !strings.Contains(err.Error(), "a.txt:2: not JSON: ") {
		t.Errorf("records, then prose: %v", err)
	}
	for _, name := range []string{"a.json", "a.ndjson"} {
		if _, err := calib.Documents(write(t, name, "prose\n"), nil); err == nil || !strings.Contains(err.Error(), name+":1: not JSON: ") {
			t.Errorf("prose in %s: %v", name, err)
		}
	}
}

// TestPlain: a byte order mark is not text, and lines end in LF.
func TestPlain(t *testing.T) {
	got, err := calib.Documents(write(t, "a.txt", "\ufeffone\r\ntwo\rthree\r\n\r\n\ufefffour"), nil)
	if want := []string{"one\ntwo\rthree\n\n\ufefffour"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

// TestLongRecords: of a long file of records pieces are read, however long its lines; a list is refused.
func TestLongRecords(t *testing.T) {
	defer calib.SetFileLimits(8000, 800)()
	long := strings.Repeat("x", 1900)
	var lines, list []string
	for i := range 40 {
		lines = append(lines, fmt.Sprintf(`{"text":"%02d%s"}`, i, long))
		list = append(list, lines[i])
	}
	// No piece of 800 bytes holds a line; the last line has no break.
	got, err := calib.Documents(write(t, "a.jsonl", strings.Join(lines, "\n")), nil)
	if err != nil || len(got) < 8 || !strings.HasPrefix(got[0], "00") {
		t.Errorf("%d records, %v", len(got), err)
	}
	for _, s := range got {
		if len(s) != 1902 {
			t.Errorf("a record of %d characters", len(s))
		}
	}
	_, err = calib.Documents(write(t, "a.json", "["+strings.Join(list, ",\n")+"]"), nil)
	if err == nil || !strings.Contains(err.Error(), "bytes of JSON whose first line is not a whole record") {
		t.Errorf("a long list: %v", err)
	}
	_, err = calib.Documents(write(t, "a.jsonl", `{"text":"a"}`+"\n"+`{"text":"`+strings.Repeat("x", 30000)+`"}`+"\n"), nil)
	if err == nil || !strings.Contains(err.Error(), "a line of more than 8000 bytes at offset ") {
		t.Errorf("a line longer than all that is read: %v", err)
	}
}
