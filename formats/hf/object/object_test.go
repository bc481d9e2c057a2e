package object

import (
	"math"
	"slices"
	"strings"
	"testing"
)

func parse(t testing.TB, text string) *Object {
	t.Helper()
	o, err := Parse("config.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestValues reads members of every kind, present, null and absent.
func TestValues(t *testing.T) {
	o := parse(t, "\xef\xbb\xbf"+`{"i": 7, "f": 1e-5, "s": "NaN \" Infinity", "b": true, "none": null, "big": 9007199254740993,
		"o": {"x": 3}, "l": [{"x": 4}, {"x": 5}], "is": [1, 2], "fs": [0.5, 2], "ss": ["a", "b"]}`)
	for what, ok := range map[string]bool{
		"integer":          o.Int("i", -1, 7, 7) == 7,
		"large integer":    o.Int("big", -1, 0, math.MaxInt64) == 9007199254740993,
		"absent integer":   o.Int("nonesuch", 5, 0, 1) == 5,
		"null integer":     o.Int("none", 5, 0, 1) == 5,
		"number":           o.Float("f", 0, 0, 1) == 1e-5,
		"integer as such":  o.Float("i", 0, 0, 7) == 7,
		"absent number":    o.Float("nonesuch", 2.5, 0, 1) == 2.5,
		"string":           o.String("s", "") == `NaN " Infinity`,
		"absent string":    o.String("nonesuch", "x") == "x",
		"truth value":      o.Bool("b", false),
		"absent truth":     o.Bool("nonesuch", true),
		"object":           o.Object("o").Int("x", -1, 0, 9) == 3,
		"absent object":    o.Object("nonesuch") == nil && !o.Object("none").Has("x"),
		"list of objects":  len(o.List("l")) == 2 && o.List("l")[1].Int("x", -1, 0, 9) == 5,
		"list of integers": slices.Equal(o.Ints("is", 1, 2), []int{1, 2}),
		"list of numbers":  slices.Equal(o.Floats("fs"), []float64{0.5, 2}),
		"list of strings":  slices.Equal(o.Strings("ss"), []string{"a", "b"}),
		"absent lists": o.Ints("nonesuch", 0, 1) == nil && o.Floats("none") == nil && o.Strings("nonesuch") == nil &&
			o.List("none") == nil,
		"list or not": o.IsList("is") && !o.IsList("i") && !o.IsList("nonesuch"),
		"present":     o.Present("none") && !o.Has("none") && !o.Present("nonesuch"),
	} {
		if !ok {
			t.Error(what)
		}
	}
	if err := o.Err(); err != nil {
		t.Error(err)
	}
}

// TestFailures: the first failure names the file, the member under all that it is in, and its value.
func TestFailures(t *testing.T) {
	const text = `{"i": 7, "f": 2.5, "s": "seven", "huge": 1e30, "beyond": 99999999999999999999, "o": {"p": {"x": -1}},
		"l": [{"x": 1}, {"x": "one"}], "is": [3, 70], "mixed": [1, "a"], "long": "` + "0123456789012345678901234567890123456789012345678901234567890123456789" + `"}`
	for want, read := range map[string]func(o *Object){
		"i: is 7, want 8 to 9":                        func(o *Object) { o.Int("i", -1, 8, 9) },
		"i: is 7, want 0 to 6":                        func(o *Object) { o.Int("i", -1, 0, 6) },
		"f: is 2.5, want an integer":                  func(o *Object) { o.Int("f", -1, 0, 9) },
		`s: is "seven", want an integer`:              func(o *Object) { o.Int("s", -1, 0, 9) },
		"huge: is 1e30, want an integer":              func(o *Object) { o.Int("huge", -1, 0, 9) },
		"beyond: is 99999999999999999999, want":       func(o *Object) { o.Int("beyond", -1, 0, 9) },
		"nonesuch: is missing":                        func(o *Object) { o.Int("nonesuch", -1, 0, 9) },
		"f: is 2.5, want more than 2.5, at most 3":    func(o *Object) { o.Float("f", 0, 2.5, 3) },
		"f: is 2.5, want more than 0, at most 2":      func(o *Object) { o.Float("f", 0, 0, 2) },
		`s: is "seven", want a number`:                func(o *Object) { o.Float("s", 0, 0, 2) },
		"none: is missing":                            func(o *Object) { o.Float("none", math.NaN(), 0, 2) },
		"i: is 7, want a string":                      func(o *Object) { o.String("i", "") },
		"i: is 7, want true or false":                 func(o *Object) { o.Bool("i", false) },
		"i: is 7, want an object":                     func(o *Object) { o.Object("i") },
		"i: is 7, want a list of objects":             func(o *Object) { o.List("i") },
		"o.p.x: is -1, want 0 to 9":                   func(o *Object) { o.Object("o").Object("p").Int("x", -1, 0, 9) },
		`l[1].x: is "one", want an integer`:           func(o *Object) { o.List("l")[1].Int("x", -1, 0, 9) },
		"is: has 70, want 0 to 9":                     func(o *Object) { o.Ints("is", 0, 9) },
		`mixed: is [1, "a"], want a list of integers`: func(o *Object) { o.Ints("mixed", 0, 9) },
		`mixed: is [1, "a"], want a list of numbers`:  func(o *Object) { o.Floats("mixed") },
		`mixed: is [1, "a"], want a list of strings`:  func(o *Object) { o.Strings("mixed") },
		`long: is "` + "01234567890123456789012345678901234567890123456789012345678" + `…, want an integer`: func(o *Object) { o.Int("long", -1, 0, 9) },
	} {
		o := parse(t, text)
		read(o)
		if err := o.Err(); err == nil || !strings.HasPrefix(err.Error(), "config.json: "+want) {
			t.Errorf("error %v, want %s", err, want)
		}
		o.Fail("later", "is not told")
		if err := o.Err(); err == nil || strings.Contains(err.Error(), "later") {
			t.Errorf("a later failure replaces the first: %v", err)
		}
	}
	for _, text := range []string{"", "null", "[]", "{", `{"a":1} x`, "7", `{"a": NaN`} {
		if _, err := Parse("config.json", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), "config.json: not a JSON object") {
			t.Errorf("%q: error %v", text, err)
		}
	}
}

// TestNotNumbers: what Python writes for what is no number makes no file unreadable, and is none.
func TestNotNumbers(t *testing.T) {
	o := parse(t, `{"a": NaN, "b":-Infinity, "c": [Infinity, 1], "NaN": "Infinity \\", "d": {"x":Infinity}, "e": 4}`)
	if o.Int("e", -1, 0, 9) != 4 || o.String("NaN", "") != `Infinity \` || o.Object("d") == nil || o.Err() != nil {
		t.Errorf("the other members are not what they were: %v", o.Err())
	}
	for want, read := range map[string]func(o *Object){
		`a: is "NaN", want a number`:                 func(o *Object) { o.Float("a", 0, 0, 1) },
		`b: is "-Infinity", want a number`:           func(o *Object) { o.Float("b", 0, 0, 1) },
		`a: is "NaN", want an integer`:               func(o *Object) { o.Int("a", 0, 0, 1) },
		`c: is ["Infinity", 1], want a list of numb`: func(o *Object) { o.Floats("c") },
	} {
		o := parse(t, `{"a": NaN, "b":-Infinity, "c": [Infinity, 1]}`)
		read(o)
		if err := o.Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

func TestQuoteNonNumbers(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"a":NaN,"b":-Infinity,"c":[Infinity]}`, `{"a":"NaN","b":"-Infinity","c":["Infinity"]}`},
		{`{"NaN":"\"NaN","b":-1}`, ""},
		{`N`, ""},
		{`"`, ""},
		{`"\`, ""},
	} {
		if got := string(quoteNonNumbers([]byte(c.in))); got != c.want {
			t.Errorf("%s: got %s, want %s", c.in, got, c.want)
		}
	}
}

// TestOver: members of the object on top win, be they null; both share their failures.
func TestOver(t *testing.T) {
	base := parse(t, `{"a": 1, "b": 2, "c": 3, "text": {"b": 20, "c": null, "d": 40}}`)
	o := base.Object("text").Over(base)
	if o.Int("a", -1, 0, 99) != 1 || o.Int("b", -1, 0, 99) != 20 || o.Has("c") || o.Int("d", -1, 0, 99) != 40 {
		t.Error("the wrong members are on top")
	}
	if base.Int("b", -1, 0, 99) != 2 || base.Has("d") {
		t.Error("the object below has changed")
	}
	o.Int("a", -1, 5, 9)
	if err := base.Err(); err == nil || err.Error() != "config.json: a: is 1, want 5 to 9" {
		t.Errorf("error %v", err)
	}
}

// TestImpostors: a file that is another in its place is named as what it is.
func TestImpostors(t *testing.T) {
	for text, want := range map[string]string{
		"version https://git-lfs.github.com/spec/v1\nsize 9\n": "config.json: it is a Git LFS pointer",
		"<!DOCTYPE html>": "config.json: it is an HTML page",
		"Entry not found": "config.json: it is a hub's answer",
	} {
		if _, err := Parse("config.json", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

// TestWholeObjects: names, comparison and failures of objects as such.
func TestWholeObjects(t *testing.T) {
	o := parse(t, `{"b": {"x": 1, "y": "two"}, "a": {"y": "two", "x": 1}, "c": {"x": 1}, "d": {"x": 2, "y": "two"}}`)
	if got := o.Keys(); !slices.Equal(got, []string{"a", "b", "c", "d"}) || (*Object)(nil).Keys() != nil {
		t.Errorf("keys %v", got)
	}
	b := o.Object("b")
	if !b.Equal(o.Object("a")) || b.Equal(o.Object("c")) || b.Equal(o.Object("d")) || o.Object("c").Equal(b) {
		t.Error("the wrong objects are equal")
	}
	if got := b.Path("x"); got != "config.json: b.x" {
		t.Errorf("path %s", got)
	}
	b.Fail("x", "is wrong")
	o.Forget()
	if n := New("other.json"); o.Err() != nil || n.Has("x") || n.Err() != nil || (*Object)(nil).Err() != nil {
		t.Errorf("a failure is left: %v", o.Err())
	}
}

// TestUnread: a member counts as read once something has asked for it, in whatever way.
func TestUnread(t *testing.T) {
	o := parse(t, `{"z": 1, "y": 2, "n": null, "i": 3, "f": 4, "s": "", "b": true, "o": {"x": 1}, "l": [], "p": 1, "h": 1}`)
	if got, want := strings.Join(o.Unread(), " "), "b f h i l o p s y z"; got != want {
		t.Errorf("unread %s, want %s", got, want)
	}
	o.Int("i", 0, 0, 9)
	o.Float("f", 0, 0, 9)
	o.String("s", "")
	o.Bool("b", true)
	o.Object("o")
	o.List("l")
	o.Present("p")
	o.Has("h")
	o.Excerpt("z")
	if got := o.Unread(); !slices.Equal(got, []string{"o.x", "y", "z"}) || o.Err() != nil {
		t.Errorf("unread %v, want o.x, y and z; %v", got, o.Err())
	}
	o.Object("o").Int("x", 0, 0, 9)
	if got := o.Unread(); !slices.Equal(got, []string{"y", "z"}) {
		t.Errorf("unread %v, want y and z: an object is the same each time", got)
	}
	if o.ReadAll(); len(o.Unread()) > 0 {
		t.Errorf("unread %v after all was read", o.Unread())
	}
}

// FuzzParse: no text makes the reader fail, and what it reads is within bounds.
func FuzzParse(f *testing.F) {
	for _, text := range []string{`{"a": NaN, "b": [-Infinity]}`, `{"a": 1e400, "b": "\\"}`, `{"a": {"b": [{"a": null}]}}`, `{"a`, "null"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := Parse("config.json", data)
		if err != nil {
			return
		}
		for _, o := range append(o.List("b"), o, o.Object("a")) {
			if n := o.Int("a", 3, 1, 9); o != nil && o.Err() == nil && (n < 1 || n > 9) {
				t.Fatalf("%d", n)
			}
			if v := o.Float("a", 3, 1, 9); o != nil && o.Err() == nil && !(v > 1 && v <= 9) {
				t.Fatalf("%g", v)
			}
		}
		o.Unread()
	})
}
