package calib_test

import (
	"strings"
	"testing"

	"github.com/llmq/llmq/calib"
)

// meta is a model's metadata.
type meta map[string]any

func (m meta) Meta(key string) (any, bool) { v, ok := m[key]; return v, ok }

func template(source any) *calib.ChatTemplate {
	return calib.NewChatTemplate(meta{
		"tokenizer.chat_template": source, "tokenizer.ggml.tokens": []string{"<s>", "</s>"},
		"tokenizer.ggml.bos_token_id": uint32(0), "tokenizer.ggml.eos_token_id": uint32(1),
	})
}

// TestChatTemplate has, in templates of our own, every construct that those of well-known models lean on; the results
// are those of Python's jinja2 3.1.6 with Hugging Face's settings.
func TestChatTemplate(t *testing.T) {
	const talk = `[{"role":"system","content":"Be kind. "},{"role":"user","content":"<b>1 & \"2\"</b>"},` +
		`{"role":"assistant","content":"<think>\nhm\n</think>\n\nThree\n"}]`
	for _, c := range []struct{ name, source, messages, want string }{
		{"plain", `{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m.content | trim }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}never{% endif %}`,
			talk, "<s>[system] Be kind.</s>[user] <b>1 & \"2\"</b></s>[assistant] <think>\nhm\n</think>\n\nThree</s>"},
		{"blocks leave no lines", "{% for m in messages %}\n    {% if not loop.first %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}\n",
			talk, "user\nassistant\n"},
		{"slices and sums", `{% set rest = messages[1:] %}{{ rest | length }} {{ messages[::-1][0].role }} {{ messages[0]['content'] + '!' }}{{ loop_messages is defined }}`,
			talk, "2 assistant Be kind. !False"},
		{"namespace", `{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role != 'user' %}{% set ns.n = ns.n + loop.index0 %}{% endif %}{% endfor %}{{ ns.n }}`,
			talk, "2"},
		{"string methods", `{% set c = messages[-1].content %}{{ c.split('</think>')[-1].lstrip('\n') ~ c.startswith('<think>') }}{{ c.replace('\n', '|') }}{{ c.strip()[-5:].upper() }}`,
			talk, "Three\nTrue<think>|hm|</think>||Three|THREE"},
		{"macro and continue", `{% macro turn(m, n=1) %}({{ m.role }}{{ n }}){% endmacro %}{% for m in messages %}{% if loop.last %}{% continue %}{% endif %}{{ turn(m, n=loop.index) }}{% endfor %}`,
			talk, "(system1)(user2)"},
		{"date", `{{ strftime_now('%d %b %Y') }}`, talk, "26 Jul 2024"},
		{"tool call", `{% for m in messages %}{% for c in m.tool_calls %}{{ c.function | tojson }}{{ c.function.arguments | tojson(indent=2) }}{% endfor %}{% endfor %}`,
			`[{"role":"assistant","content":null,"tool_calls":[{"function":{"arguments":{"b":[1,2.5,null,true,"é<'>"],"c":{}},"name":"f"}}]}]`,
			`{"arguments": {"b": [1, 2.5, null, true, "é<'>"], "c": {}}, "name": "f"}` +
				"{\n  \"b\": [\n    1,\n    2.5,\n    null,\n    true,\n    \"é<'>\"\n  ],\n  \"c\": {}\n}"},
		{"range", `{{ range(3) | list }}{% for i in range(7, 0, -3) %}{{ i }}{% endfor %}`, talk, "[0, 1, 2]741"},
		{"tests", `{% for m in messages %}{{ m.content is string }}{{ m.x is defined and m.x is not none }}{{ m.role in ['user', 'tool'] }}{{ loop.index0 % 2 == 0 }};{% endfor %}`,
			talk, "TrueFalseFalseTrue;TrueFalseTrueFalse;TrueFalseFalseTrue;"},
	} {
		if got, err := template(c.source).Render(c.messages); err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func TestChatErrors(t *testing.T) {
	const ok = `[{"role":"user","content":"x"}]`
	for _, c := range []struct {
		template       *calib.ChatTemplate
		messages, want string
	}{
		{nil, ok, "need a chat template"},
		{calib.NewChatTemplate(meta{}), ok, "the model has no tokenizer.chat_template"},
		{template(7), ok, "tokenizer.chat_template is int, want string"},
		{template("{% for m in %}"), ok, "tokenizer.chat_template: "},
		{template("{% include '/etc/passwd' %}"), ok, "line 1: {% include %} is not supported"},
		{template("{{ raise_exception('roles must alternate') }}"), ok, "roles must alternate"},
		{template("\n{{ nothing() }}"), ok, "the chat template: line 2: 'nothing' is undefined"},
		{template("{{ messages[0].content + 1 }}"), ok, "line 1: unsupported operand type(s) for +: 'str' and 'int'"},
		{template("{% for i in range(100000) %}{{ messages }}{% endfor %}"), ok, "out of all proportion"},
		{template("{% for i in range(1000000000) %}{% endfor %}"), ok, "range: more than 100000 numbers"},
		{template("{% for i in range(0, 9, 0) %}{% endfor %}"), ok, "a step of 0"},
		{template(""), `{}`, `"messages" is not an array`},
		{template(""), `[]`, `"messages" is empty`},
		{template(""), `[1]`, `"messages"[0] is not an object`},
		{template(""), `[{"role":"user"},{"content":"x"}]`, `"messages"[1] has no "role"`},
	} {
		got, err := c.template.Render(c.messages)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, error %v, want %q", c.messages, got, err, c.want)
		} else if len(err.Error()) > 400 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
}

// TestConversations samples conversations: control tokens are tokens in them, and text elsewhere.
func TestConversations(t *testing.T) {
	chat := template(`{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}`)
	const messages = `{"messages":[{"role":"user","content":"hello"},{"role":"assistant","content":"there"}]}`
	path := lines(t, messages, record{Text: "<s>plain"})
	set := sample(t, []string{path}, letters{bos: true}, calib.Options{Tokens: 20, SeqLen: 20, Chat: chat})
	want := append([]int32{bosID}, []rune("hellothere")...) // one BOS token, not two
	want = append(append(want, bosID), []rune("<s>plain")...)
	for i, id := range want {
		if set.Sequences[0][i] != id {
			t.Fatalf("%v, want %v", set.Sequences[0], want)
		}
	}
}

// TestChatRecord gives a record's other members to the template.
func TestChatRecord(t *testing.T) {
	chat := template(`{{ tools is none }}{% if tools %}{{ tools | tojson }}{% endif %}{{ documents | length if documents else 0 }}{{ thinking is defined and thinking }}{{ unk_token is defined }}|`)
	const turns = `"messages":[{"role":"user","content":"hello"}]`
	for _, c := range []struct{ record, want, fault string }{
		{`{` + turns + `}`, "True0FalseFalse|", ""},
		{`{` + turns + `,"tools":null,"documents":[{"text":"x"}]}`, "True1FalseFalse|", ""},
		{`{` + turns + `,"tools":[{"z":1,"a":2}],"chat_template_kwargs":{"thinking":true}}`, `False[{"z": 1, "a": 2}]0TrueFalse|`, ""},
		{`{` + turns + `,"tools":"[]"}`, "", `"tools" is not an array of objects`},
		{`{` + turns + `,"tools":["f"]}`, "", `"tools" is not an array of objects`},
		{`{` + turns + `,"chat_template_kwargs":3}`, "", `"chat_template_kwargs" is not an object`},
		{`{` + turns + `,"chat_template_kwargs":{"messages":[]}}`, "", `"chat_template_kwargs" has "messages"`},
	} {
		set, err := calib.Sample([]string{lines(t, c.record)}, letters{}, calib.Options{Tokens: 2, SeqLen: 2, Chat: chat})
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), ":1: "+c.fault) {
				t.Errorf("%s: %v, want %q", c.record, err, c.fault)
			}
			continue
		}
		if err != nil || set.Sources[0].Tokens != len(c.want) {
			t.Errorf("%s: %+v, %v; want %d tokens", c.record, set, err, len(c.want))
		}
	}
}
