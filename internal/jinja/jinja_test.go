package jinja

import (
	"strings"
	"testing"
	"time"
)

const talk = `[{"role": "system", "content": " Be kind. \n"}, {"role": "user", "content": "a</t>b</t>c"}, {"role": "assistant", "content": "x", "list": [3, 1, 2], "num": 3, "flt": 1.5, "d": {"b": 1, "a": "é", "items": 5}, "big": 123456789012345678901234567890, "e": 1e+22, "neg": -0.0}]`

// renderTalk renders a template with a conversation, in as much work as a record may take.
func renderTalk(t testing.TB, source, messages string) (string, error) {
	tmpl, err := Parse(source)
	if err != nil {
		return "", err
	}
	m, err := Decode([]byte(messages))
	if err != nil {
		t.Fatal(err)
	}
	return tmpl.Render(map[string]any{
		"messages": m, "tools": nil, "documents": nil, "add_generation_prompt": false,
		"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>",
	}, Options{Now: time.Date(2024, 7, 26, 0, 0, 0, 0, time.UTC), Limits: Limits{Output: 1 << 20, Work: 64 << 20}})
}

// TestPython holds the package to Python: each want is what jinja2 3.1.6 gives in transformers' environment
// (ImmutableSandboxedEnvironment, trim_blocks, lstrip_blocks, transformers' tojson, strftime_now, raise_exception and
// generation blocks).
func TestPython(t *testing.T) {
	for _, c := range []struct{ source, want string }{
		{`{% set a, b = 1, 2 %}{{ a }}{{ b }}`, `12`},
		{`{% set a, (b, c) = 1, (2, 3) %}{{ a }}{{ b }}{{ c }}`, `123`},
		{`{{ 'a' if 0 else 'b' if 0 else 'c' }}`, `c`},
		{`{{ 'a' if false }}|{{ ('a' if false) is defined }}`, `|False`},
		{`{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 1 == 1.0 }}{{ true == 1 }}`, `TrueFalseTrueTrue`},
		{`{{ 'a b c'.split(' ', 1) }}{{ 'a b  c'.split(None, 1) }}{{ ' a b  c '.rsplit(maxsplit=1) }}{{ 'a,b,c'.rsplit(',', 1) }}{{ ' a '.split(' ') }}{{ ''.split() }}{{ ''.split(',') }}{{'a b'.split(sep=' ', maxsplit=0)}}{{' a b '.split(maxsplit=0)}}{{' a b '.rsplit(maxsplit=0)}}`, `['a', 'b c']['a', 'b  c'][' a b', 'c']['a,b', 'c']['', 'a', ''][]['']['a b']['a b '][' a b']`},
		{`{{ 'é中😀'[::-1] }}{{ 'é中😀'[-2:] }}{{ 'abcdef'[::2] }}{{ 'abcdef'[4:1:-1] }}{{ [1,2,3,4][::-2] }}{{ (1,2,3)[1:] }}{{ 'abc'[5:] }}{{ 'abc'[-10:2] }}{{ [1,2][:-5] }}`, `😀中é中😀aceedc[4, 2](2, 3)ab[]`},
		{`{{ 'é中😀'.find('😀') }}{{ 'é中😀'.index('中') }}{{ 'aéa'.rfind('a') }}{{ 'ab'.find('b', 2) }}`, `212-1`},
		{`{{ 'straße'.upper() }}{{ 'ΑΣ'.lower() }}{{ 'ǆ'.title() }}{{ "it's ok".title() }}{{ "it's-ok (yes)" | title }}{{ 'éCOLE' | capitalize }}{{ 'ß' | capitalize }}`, `STRASSEαςǅIt'S OkIt's-Ok (Yes)ÉcoleSs`},
		{`{{ messages[2].d }}{{ messages[2].d.items() }}{{ messages[2].d.keys() }}{{ messages[2].d.values() | list }}`, `{'b': 1, 'a': 'é', 'items': 5}dict_items([('b', 1), ('a', 'é'), ('items', 5)])dict_keys(['b', 'a', 'items'])[1, 'é', 5]`},
		{`{{ messages[2].d['items'] }}{{ messages[2]['d'].a }}`, `5é`},
		{`{{ messages[2].d | tojson(indent=2) }}`, "{\n  \"b\": 1,\n  \"a\": \"é\",\n  \"items\": 5\n}"},
		{`{{ messages | tojson(indent=4) }}`, "[\n    {\n        \"role\": \"system\",\n        \"content\": \" Be kind. \\n\"\n    },\n    {\n        \"role\": \"user\",\n        \"content\": \"a</t>b</t>c\"\n    },\n    {\n        \"role\": \"assistant\",\n        \"content\": \"x\",\n        \"list\": [\n            3,\n            1,\n            2\n        ],\n        \"num\": 3,\n        \"flt\": 1.5,\n        \"d\": {\n            \"b\": 1,\n            \"a\": \"é\",\n            \"items\": 5\n        },\n        \"big\": 123456789012345678901234567890,\n        \"e\": 1e+22,\n        \"neg\": -0.0\n    }\n]"},
		{`{{ messages[2] | tojson(sort_keys=true) }}{{ messages[2].d | tojson(ensure_ascii=true) }}{{ [1,'😀'] | tojson(ensure_ascii=true, separators=(',', ':')) }}`, `{"big": 123456789012345678901234567890, "content": "x", "d": {"a": "é", "b": 1, "items": 5}, "e": 1e+22, "flt": 1.5, "list": [3, 1, 2], "neg": -0.0, "num": 3, "role": "assistant"}{"b": 1, "a": "\u00e9", "items": 5}[1,"\ud83d\ude00"]`},
		{`{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=2) }}{{ [[]] | tojson(indent=1) }}{{ {1: 2, true: 3, none: 4, 1.5: 5} | tojson }}`, "[]{}[\n []\n]{\"1\": 3, \"null\": 4, \"1.5\": 5}"},
		{`{{ "\x00\x1f\x7f\b\f\"\\/" | tojson }}`, "\"\\u0000\\u001f\x7f\\b\\f\\\"\\\\/\""},
		{`{{ "\x00\x1f\x7f\b\f\"\\/\u00e9\U0001F600\'\101" }}{{ ["\x00\x1f\x7f\n'", 'a"b', "\xad\u200b"] }}`, "\x00\x1f\x7f\x08\x0c\"\\/é😀'A[\"\\x00\\x1f\\x7f\\n'\", 'a\"b', '\\xad\\u200b']"},
		{`{{ messages[2].big }}{{ messages[2].big | tojson }}{{ messages[2].e }}{{ messages[2].neg }}{{ 1e16 }}{{ 1e15 }}{{ 0.0001 }}{{ 0.00001 }}{{ 1.0e-7 }}{{ 123456789.123 }}{{ 1_000 }}{{ 0x1F }}{{ 1e100 }}`, `1234567890123456789012345678901234567890123456789012345678901e+22-0.01e+161000000000000000.00.00011e-051e-07123456789.1231000311e+100`},
		{`{{ 2 ** 62 }}{{ 2 ** -1 }}{{ 7 // -2 }}{{ -7 % 3 }}{{ 7.5 // 2 }}{{ -7.5 % 2 }}{{ 5 / 2 }}{{ 4 / 2 }}{{ -2 ** 2 }}{{ 2 ** 3 ** 2 }}{{ (-3) | abs }}{{ -3 | abs }}`, `46116860184273879040.5-423.00.52.52.046433`},
		{`{{ [1] + [2] }}{{ (1,) + (2,) }}{{ [0] * 3 }}{{ 3 * 'ab' }}{{ () }}{{ (1,) }}{{ [1,] }}`, `[1, 2](1, 2)[0, 0, 0]ababab()(1,)[1]`},
		{`{{ 'x' * -1 }}|{{ [1,2] == [1,2] }}{{ (1,2) == [1,2] }}{{ {'a':1} == {'a':1.0} }}`, `|TrueFalseTrue`},
		{`{{ none.foo }}|{{ none['a'] }}`, `|`},
		{`{% for x in undefinedx %}{% else %}empty{% endfor %}`, `empty`},
		{`{% for a, b in [[1,2],[3,4]] %}{{ a }}{{ b }};{% endfor %}`, `12;34;`},
		{`{% for x in [1,2,3,4] if x % 2 == 0 %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}`, `1TrueFalse2214;2FalseTrue2102;`},
		{`{% for x in [1,2,3] %}{{ loop.cycle('a','b') }}{{ loop.changed(x > 1) }}{{ loop.depth }}{% if loop.last %}{{ loop.previtem }}{% endif %}{% endfor %}`, `aTrue1bTrue1aFalse12`},
		{`{% for x in [1,[2,[3]]] recursive %}{% if x is iterable %}<{{ loop(x) }}>{% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}`, `1@1<2@2<3@3>>`},
		{`{% for x in 'abc' %}{{ x }}{% if x == 'b' %}{% break %}{% endif %}{% endfor %}{% for x in [1,2,3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}`, `ab13`},
		{`{% set x = 1 %}{% for i in [1,2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}`, `15151`},
		{`{% set ns = namespace(a=1, b=[]) %}{% for i in [1,2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.zz is defined }}{{ ns['a'] }}`, `4False4`},
		{`{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1) }}{{ m(1, 3, 4, 5, z=6) }}{{ m(b=7, a=8) }}`, `121(){}134(5,){'z': 6}878(){}`},
		{`{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m() }}{{ m(1) | upper }}{{ m(a=1) ~ 'x' }}`, `[][1][1]x`},
		{`{% macro m() %}<{{ caller('q') }}>{% endmacro %}{% call(x) m() %}[{{ x }}]{% endcall %}`, `<[q]>`},
		{`{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}`, `54321`},
		{`{% macro m() %}{{ later }}{% endmacro %}{% set later = 3 %}{{ m() }}`, `3`},
		{`{% set x %}a{{ 1 }}b{% endset %}{{ x | upper }}{{ x | length }}`, `A1B3`},
		{`{% set x | upper | replace('A', 'z') %}ab{% endset %}{{ x }}`, `zB`},
		{`{% filter upper | trim %} ab {% endfilter %}`, `AB`},
		{`{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}`, `3False`},
		{`{% raw %}{{ x }}{% if %}{% endraw %}`, `{{ x }}{% if %}`},
		{`{#- c -#}  x {# y #}`, `x `},
		{`{% if true %}a{% elif x %}b{% else %}c{% endif %}`, `a`},
		{`{% generation %}{{ messages[0].role }}{% endgeneration %}`, `system`},
		{`{% for m in messages %}{% generation %}{{ loop.index }}{% set q = 1 %}{% endgeneration %}{{ q is defined }}{% endfor %}`, `1False2False3False`},
		{`{{ '%s %5d|%-5s|%05.1f %x %%' % ('a', 3, 'b', 2.25, 255) }}{{ '%(a)s' % {'a': 1} }}{{ '%r' % 'x' }}{{ "%s" % [1] }}{{ '%.2f' % 1 }}{{ '%+d' % 5 }}`, `a     3|b    |002.2 ff %1'x'[1]1.00+5`},
		{`{{ '{0} {1} {0}'.format('a', 'b') }}{{ '{}'.format(none) }}`, `a b aNone`},
		{`{{ [3,1,2] | sort }}{{ ['b','A','c'] | sort }}{{ ['b','A','c'] | sort(case_sensitive=true) }}{{ [3,1,2] | sort(reverse=true) }}{{ messages | sort(attribute='role') | map(attribute='role') | list }}`, `[1, 2, 3]['A', 'b', 'c']['A', 'b', 'c'][3, 2, 1]['assistant', 'system', 'user']`},
		{`{{ ['a','A','b'] | unique | list }}{{ [1,1,2] | unique | join(',') }}`, `['a', 'b']1,2`},
		{`{{ [1,2,3] | map('string') | join('-') }}{{ ['a'] | map('upper') | list }}{{ [1,2,3] | select('odd') | list }}{{ [0,1,''] | select | list }}{{ [0,1] | reject | list }}`, `1-2-3['A'][1, 3][1][0]`},
		{`{{ messages | map(attribute='d.b', default=0) | list }}`, `[0, 0, 1]`},
		{`{{ {'b': 1, 'A': 2} | dictsort }}{{ {'b': 1, 'A': 2} | dictsort(true) }}{{ {'b': 1, 'A': 2} | dictsort(by='value', reverse=true) }}`, `[('A', 2), ('b', 1)][('A', 2), ('b', 1)][('A', 2), ('b', 1)]`},
		{`{{ 'abc' | first }}{{ 'abc' | last }}{{ [] | first is defined }}{{ 'abc' | reverse }}{{ [1,2] | reverse | list }}{{ 'a' | list }}`, `acFalsecba[2, 1]['a']`},
		{`{{ '3' | int }}{{ 'x' | int }}{{ 'x' | int(5) }}{{ '3.7' | int }}{{ '0x1f' | int(0, 16) }}{{ 3.9 | int }}{{ '1.5' | float }}{{ none | int }}{{ ' 4 ' | int }}`, `30533131.504`},
		{`{{ 2.5 | round }}{{ 3.14159 | round(2) }}{{ 3.1 | round(0, 'ceil') }}{{ 5 | round }}{{ 2.675 | round(2) }}`, `2.03.144.052.67`},
		{`{{ 'a\n\nb' | indent }}|{{ 'a\nb\n' | indent(2, true, true) }}|{{ 'a\r\nb' | indent('> ') }}`, "a\n\n    b|  a\n  b\n  |a\n> b"},
		{`{{ 'abc' | center(9) }}|{{ 'ab'.center(5, '*') }}|{{ 'abc'.center(6,'*') }}|{{ '-3'.zfill(5) }}|{{ 'a'.rjust(3, '.') }}`, `   abc   |**ab*|*abc**|-0003|..a`},
		{`{{ [{'a':1},{'a':2}] | sum(attribute='a') }}{{ [1,5,2] | max }}{{ [] | min is defined }}{{ ['b','A'] | min }}`, `35FalseA`},
		{`{{ '<a>' | e }}{{ '<a>' | escape | upper }}{{ ('<a>' | safe) + '<b>' }}{{ '<' ~ ('<a>' | safe) }}{{ '<a>' | safe | length }}`, `&lt;a&gt;&LT;A&GT;<a>&lt;b&gt;<<a>3`},
		{`{{ 1 is number }}{{ true is number }}{{ true is integer }}{{ 1.0 is float }}{{ 'a' is sequence }}{{ {} is sequence }}{{ none is sequence }}{{ 1 is iterable }}{{ range(3) is iterable }}{{ undefinedx is iterable }}`, `TrueTrueFalseTrueTrueTrueFalseFalseTrueTrue`},
		{`{{ 'a' is lower }}{{ 'A' is upper }}{{ 4 is divisibleby(2) }}{{ 1 is sameas 1 }}{{ true is sameas true }}{{ 1 is sameas true }}{{ 2 is in [1,2] }}{{ 2 is not in [1] }}{{ 1 is ne 2 }}{{ true is true }}{{ 1 is true }}`, `TrueTrueTrueTrueTrueFalseTrueTrueTrueTrueFalse`},
		{`{{ 'a' in {'a': 1} }}{{ [1] in [[1]] }}{{ 1 not in (2,3) }}{{ 'a' in undefinedx }}`, `TrueTrueTrueFalse`},
		{`{{ [] < [1] }}{{ 'a' < 'b' }}{{ (1,2) < (1,3) }}`, `TrueTrueTrue`},
		{`{{ undefinedx == undefinedy }}{{ undefinedx == none }}{{ not undefinedx }}{{ undefinedx | length }}{{ undefinedx | default(3) }}{{ undefinedx | upper }}|`, `TrueFalseTrue03|`},
		{`{{ ''.__class__ }}`, ``},
		{`{{ range(5) }}{{ range(1, 5, 2) | list }}{{ range(5)[2] }}{{ range(5)[-1] }}{{ range(0) | list }}{{ range(5, 0, -2) | list }}{{ range(3) | length }}`, `range(0, 5)[1, 3]24[][5, 3, 1]3`},
		{`{{ dict(a=1, b=2) }}{{ dict([('a', 1)]) }}{{ dict({'x': 1}, y=2) }}`, `{'a': 1, 'b': 2}{'a': 1}{'x': 1, 'y': 2}`},
		{`{% set j = joiner(', ') %}{{ j() }}{{ j() }}{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}`, `, aba`},
		{`{{ [1,2,3].index(2) }}{{ [1,1].count(1) }}{{ (1,2).index(2) }}{{ 'abab'.count('ab') }}{{ ''.count('') }}{{ 'abc'.count('') }}`, `121214`},
		{`{{ 'a-b_c'.partition('-') }}{{ 'abc'.rpartition('z') }}{{ 'abcabc'.removesuffix('abc') }}{{ 'a\tb'.expandtabs(4) }}{{ 'aBc'.swapcase() }}{{ 'aSS'.casefold() }}`, `('a', '-', 'b_c')('', '', 'abc')abca   bAbCass`},
		{`{{ 'a\nb\r\nc\x0bd\x1ce'.splitlines() }}{{ 'a\n\n'.splitlines(true) }}`, `['a', 'b', 'c', 'd', 'e']['a\n', '\n']`},
		{`{{ 'abc'.replace('', '-') }}{{ 'aaa'.replace('a', 'b', 0) }}{{ 'aaa' | replace('a', 'b', 2) }}{{ 5 | replace(5, 6) }}`, `-a-b-c-aaabba6`},
		{`{{ [1, none, undefinedx, 'a', 1.5] | join('|') }}`, `1|None||a|1.5`},
		{`{{ '١٢'.isdigit() }}{{ '²'.isdigit() }}{{ '²'.isdecimal() }}{{ '½'.isnumeric() }}{{ 'a1'.isalnum() }}{{ 'é'.isalpha() }}{{ ' \x1c\u3000'.isspace() }}{{ 'Ab Cd'.istitle() }}{{ ''.isalpha() }}`, `TrueTrueFalseTrueTrueTrueTrueTrueFalse`},
		{`{{ '\u3000\x1c a \x85'.strip() }}|{{ 'xyx'.strip('xy') }}|{{ 'aé'.rstrip('é') }}|{{ ' a '.strip(none) }}|`, `a||a|a|`},
		{`{{ strftime_now('%d %b %Y %H:%M:%S %j %y %I %p %A %a %-d %e %%') }}`, `26 Jul 2024 00:00:00 208 24 12 AM Friday Fri 26 26 %`},
		{`{{ messages[-1]['list'][-1] }}{{ messages[2].list.0 }}{{ 'abc'.0 }}{{ messages[10] }}|{{ messages['a'] }}|{{ messages[0][0] }}`, `23a||`},
		{`{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a': 1, 'a': 2} }}{{ {}['x'] is defined }}{{ {'a': 1}.a }}{{ {1: 'x'}[1.0] }}{{ {(1,2): 3}[(1,2)] }}`, `1{'a': 2}False1x3`},
		{`{{ [[1]] }}{{ {'a': [1, 'x', none, true]} }}{{ ('a', 1) }}`, `[[1]]{'a': [1, 'x', None, True]}('a', 1)`},
		{`{{ not true and false or true }}{{ not (true and false) }}{{ 1 or 2 }}{{ 0 or 'x' }}{{ 1 and 2 }}{{ '' and 1 }}|`, `TrueTrue1x2|`},
		{`{{ messages | length - 1 }}{{ (messages | length) - 1 }}{{ messages|map(attribute='role')|join(', ') ~ '!' }}`, `22system, user, assistant!`},
		{`{{ messages | selectattr('role', 'in', ['user']) | first }}`, `{'role': 'user', 'content': 'a</t>b</t>c'}`},
		{`{{ (messages | map(attribute='role'))[0] }}|{{ (messages | map(attribute='role')) is iterable }}`, `|True`},
		{`{% set g = messages | map(attribute='role') %}{{ g | list }}{{ g | list }}`, `['system', 'user', 'assistant'][]`},
		{`{{ namespace(a=1) }}{{ messages[0].items() | list }}{{ messages[0].items() | length }}{{ messages[0].items()[0] }}|`, `<Namespace {'a': 1}>[('role', 'system'), ('content', ' Be kind. \n')]2|`},
		{`{{ messages[0].get('x', {}).get('y') }}{{ messages[0] | items | list }}{{ undefinedx | items | list }}`, `None[('role', 'system'), ('content', ' Be kind. \n')][]`},
		{`{% print 1, 2 %}`, `12`},
		{`{%+ if true %} a {%+ endif %}`, ` a `},
		{`  {% if true %}  b{% endif %}`, `  b`},
		{`a{{ 1 -}}   b {{- 2 }}`, `a1b2`},
		{`{% set x = 1 if true else 2, 3 %}{{ x }}`, `(1, 3)`},
		{`{% for x in [1] + [2] %}{{ x }}{% endfor %}{% for x in 1, 2 %}{{ x }}{% endfor %}{% for (a, b) in [(1,2)] %}{{ a }}{% endfor %}`, `12121`},
		{`{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ loop.index }}{% endfor %}`, `a11`},
		{`{% if 'a' in ['a'] and not 'b' in ['a'] %}y{% endif %}{% if messages[0].role is defined and messages[0].role == 'system' %}z{% endif %}`, `yz`},
		{`{% set ns = namespace(f=false) %}{% for m in messages if not ns.f %}{{ m.role }}{% set ns.f = true %}{% endfor %}`, `system`},
		{`{{ 9223372036854775807 }}{{ 9223372036854775806 + 1 }}`, `92233720368547758079223372036854775807`},
		{`{{ true + 1 }}{{ -true }}{{ true * 3 }}{{ 'ab'[true] }}`, `2-13b`},
		{`{{ messages[:1] | list | tojson }}{{ (1, 2) | tojson }}{{ 1.0 | tojson }}{{ 'é' | tojson }}{{ none | tojson }}{{ true | tojson }}`, `[{"role": "system", "content": " Be kind. \n"}][1, 2]1.0"é"nulltrue`},
		{`{{ [1,2,3] | last }}{{ {'a': 1} | first }}{{ (1,2) | first }}{{ range(3) | last }}{{ {'a': 1} | list }}{{ {'a': 1} | length }}`, `3a12['a']1`},
		{`{{ x.y if x is defined else 'no' }}{{ (x if x) is defined }}`, `noFalse`},
		{`{{ '' | default('a') }}|{{ none | default('a') }}|{{ none | default('a', true) }}|{{ 0 | d(1, boolean=true) }}`, `|None|a|1`},
		{`{{ "{{" }}{{ '}}' }}{{ "%}" }}{{ {'a': '}'} }}`, `{{}}%}{'a': '}'}`},
		{`{{ messages[0].content | trim('\n B') }}|{{ 'xax' | trim('x') }}`, `e kind.|a`},
		{`{{ 'ab cd' | wordcount }}{{ 'abc' | string }}{{ [1] | string }}`, `2abc[1]`},
		{`{{ 'a' < 'B' }}{{ 'Zebra' | lower < 'apple' }}`, `FalseFalse`},
		{`{% for i in range(3) %}{% for j in range(2) %}{{ loop.index }}{{ i }}{% endfor %}{{ loop.index }}{% endfor %}`, `102011121212223`},
		{`{% for m in messages | reverse %}{{ m.role }}{% endfor %}{% for c in 'ab' | list %}{{ c }}{% endfor %}`, `assistantusersystemab`},
		{`{% for item in messages[2].list | sort %}{{ item }}{{ ',' if not loop.last }}{% endfor %}`, `1,2,3`},
		{`{% for m in messages %}{{ loop }}{% endfor %}`, `<LoopContext 1/3><LoopContext 2/3><LoopContext 3/3>`},
		{`{% set s = 'a' %}{% if true %}{% set s = s ~ 'b' %}{% endif %}{{ s }}{% set s = s + 'c' %}{{ s }}`, `ababc`},
		{`{% for m in (messages[1:] if messages[0].role == 'system' else messages) %}{{ m.role }},{% endfor %}`, `user,assistant,`},
		{`{{ (messages[1].content.split('</t>') | last).lstrip('\n') }}{{ (' x ' if true else '').rstrip() }}`, `c x`},
		{`{{ messages[1].content.split('</t>', 1)[1] }}{{ messages[1].content.rsplit('</t>', 1)[0] }}`, `b</t>ca</t>b`},
		{`{% for k, v in (messages[2].d).items() %}{{ k }}={{ v }};{% endfor %}`, `b=1;a=é;items=5;`},
		{`{{ 'x' if false else 'y' if false else 'z' }}{{ ('x' if true else 'y') + 'z' }}`, `zxz`},
		{`{{ 'abc'.endswith(('x', 'c')) }}{{ 'abc'.startswith(('x', 'b')) }}{{ 'abc'.endswith('b', 0, 2) }}`, `TrueFalseTrue`},
		{`{{ [1, 2, 3].index(3) }}{{ 'ab'.center(6) }}|{{ 'abc'[1:][::-1] }}`, `2  ab  |cb`},
		{`{% macro t(x) %}{% if x is string %}{{ x }}{% else %}{{ x | tojson }}{% endif %}{% endmacro %}{{ t('a') }}{{ t({'b': 1, 'a': [2]}) }}`, `a{"b": 1, "a": [2]}`},
		{`{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ tools is none }}{{ tools is defined }}`, `<|begin_of_text|><|end_of_text|>FalseTrueTrue`},
		{`{{ none | selectattr('a', 'equalto', 1) | list | length }}{{ none | map('upper') | list }}`, `0[]`},
	} {
		if got, err := renderTalk(t, c.source, talk); err != nil || got != c.want {
			t.Errorf("%s\n got %q, %v\nwant %q", c.source, got, err, c.want)
		}
	}
}

// TestPythonRaises has what Python refuses, or answers with an address in memory.
func TestPythonRaises(t *testing.T) {
	for _, source := range []string{
		`{{ 1 + 'a' }}`,
		`{{ 'a' + 1 }}`,
		`{{ none + 'a' }}`,
		`{{ undefinedx + 'a' }}`,
		`{{ undefinedx.foo }}`,
		`{{ undefinedx['foo'] }}`,
		`{{ none.foo.bar }}`,
		`{% for x in none %}{% endfor %}`,
		`{% for x in 5 %}{% endfor %}`,
		`{% for a, b in [[1,2,3]] %}{{ a }}{% endfor %}`,
		`{% set d = {} %}{% set d.x = 1 %}`,
		`{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}`,
		`{% macro m(a) %}{% endmacro %}{{ m(b=2) }}`,
		`{{ '{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}|{:,}|{!r}|{{}}|{a}|{0}'.format(1, 'x', 'y', 3, 1.5, 1234567, 'q', a=2) }}`,
		`{{ messages | map(attribute='zz', default='d') | list }}{{ messages | map(attribute='d.b') | list }}`,
		`{{ [1,2,3] | batch(2) | list }}{{ [1,2,3] | batch(2, 0) | list }}{{ [1,2.5] | sum }}{{ messages | sum(attribute='num') }}`,
		`{{ 1 in none }}`,
		`{{ none in 'abc' }}`,
		`{{ 1 < 'a' }}`,
		`{{ undefinedx < 1 }}`,
		`{{ undefinedx | tojson }}`,
		`{{ [1,2].append(3) }}`,
		`{{ {}.update({'a': 1}) }}`,
		`{{ messages[0].pop('role') }}`,
		`{{ range(100001) }}`,
		`{{ [1].index(5) }}`,
		`{{ 'abc'.index('z') }}`,
		`{{ 'x'.join([1]) }}`,
		`{{ messages[0].zz.yy }}`,
		`{{ nofilter | zzz }}`,
		`{{ 1 is zzz }}`,
		`{{ f( }}`,
		`{{ "a" "b" 'c' }}{{ 'a' ~ 'b' + 'c' }}{{ 1 ~ 2 * 3 }}{{ 10 - 2 - 3 }}{{ 2 + 3 ~ 4 }}`,
		`{{ messages | map(attribute='role') }}`,
		`{{ (messages | selectattr('role')) | length }}`,
		`{{ range(3) | tojson }}`,
		`{{ 'a'.upper }}`,
		`{{ raise_exception('no') }}`,
	} {
		got, err := renderTalk(t, source, talk)
		if err == nil {
			t.Errorf("%s\n got %q, want an error", source, got)
		} else if !strings.HasPrefix(err.Error(), "line 1: ") {
			t.Errorf("%s\n the error has no line: %v", source, err)
		}
	}
}

// TestBlocks has what goes over several lines: whitespace around blocks, and the lines of errors.
func TestBlocks(t *testing.T) {
	for _, c := range []struct{ source, want string }{
		{"{% for m in messages %}\n    {% if not loop.first %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}\n", "user\nassistant\n"},
		{"a\n  {#- c #}\n  {{- 1 }}\n\n  {%- if true %}\n b\n  {%- endif +%}\nc\r\nd\n\n", "a1 b\nc\nd\n"},
		{"  {%+ if true %}\n  x\n  {%- endif %}  y\n", "    x  y"},
		{"{% raw -%}\n {{ a }}\n  {% endraw %}\nb", "{{ a }}\nb"},
	} {
		if got, err := renderTalk(t, c.source, talk); err != nil || got != c.want {
			t.Errorf("%q\n got %q, %v\nwant %q", c.source, got, err, c.want)
		}
	}
	for source, want := range map[string]string{
		"a\n{{ b.c }}":   "line 2: 'b' is undefined",
		"\n\n{% if x %}": "line 3: the template ends without",
		"\n{% for x in [1] %}\n{{ x + 'a' }}{% endfor %}": "line 3: unsupported operand",
		"\n{# x":              "line 2: a comment without its end",
		"\n{% include 'x' %}": "line 2: {% include %} is not supported",
		"{% break %}":         "{% break %} outside of a loop",
	} {
		if _, err := renderTalk(t, source, talk); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", source, err, want)
		}
	}
}

// TestHostile has templates that would take all time or memory.
func TestHostile(t *testing.T) {
	double := strings.Repeat("{% set l = [l, l] %}", 100)
	for name, source := range map[string]string{
		"range":        `{% for i in range(1000000000000) %}{% endfor %}`,
		"loops":        `{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}`,
		"recursion":    `{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}`,
		"calls":        `{% macro f(n) %}{% for i in range(9) %}{{ f(n + 1) if n < 100 }}{% endfor %}{% endmacro %}{{ f(0) }}`,
		"repeat":       `{{ 'x' * 1000000000000 }}`,
		"repeat list":  `{{ ([1] * 1000000000000) | length }}`,
		"power":        `{{ 10 ** 10 ** 10 }}`,
		"doubling":     `{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}`,
		"shared lists": `{% set l = [] %}` + double + `{{ l }}`,
		"shared JSON":  `{% set l = [] %}` + double + `{{ l | tojson }}`,
		"compared":     `{% set l = [] %}` + double + `{% set a = l %}{% set l = [] %}` + double + `{{ a == l }}`,
		"nested":       `{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}`,
		"cycle":        `{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}`,
		"replace":      `{% set s = 'x' * 9999 %}{{ s.replace('', s * 999) | length }}`,
		"pad":          `{{ 'x'.center(1000000000000) }}`,
		"printf":       `{{ '%999999999d' % 1 }}`,
		"format":       `{{ '{:999999999}'.format(1) }}`,
		"indent":       `{{ [1] | tojson(indent=1000000000000) }}`,
		"parentheses":  `{{ ` + strings.Repeat("(", 1<<16) + "1" + strings.Repeat(")", 1<<16) + ` }}`,
		"subscripts":   `{{ ` + strings.Repeat("a[", 1<<16) + "1" + strings.Repeat("]", 1<<16) + ` }}`,
		"nots":         `{{ ` + strings.Repeat("not ", 1<<16) + ` }}`,
		"minuses":      `{{ ` + strings.Repeat("- ", 1<<16) + ` }}`,
		"blocks":       strings.Repeat("{% if 1 %}", 1<<16),
		"sum":          `{{ 1` + strings.Repeat("+1", 1<<18) + ` }}`,
		"attributes":   `{{ messages` + strings.Repeat(".a", 1<<18) + ` }}`,
		"output":       `{% for i in range(99999) %}{{ messages }}{% endfor %}`,
	} {
		start := time.Now()
		got, err := renderTalk(t, source, talk)
		if err == nil {
			t.Errorf("%s: %d bytes, want an error", name, len(got))
		} else if len(err.Error()) > 500 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
		if d := time.Since(start); d > 30*time.Second {
			t.Errorf("%s took %v", name, d)
		}
	}
}

func TestDecode(t *testing.T) {
	for _, bad := range []string{"", "{", "[1", `{"a"}`, "1 2", strings.Repeat("[", 1000), "nul"} {
		if v, err := Decode([]byte(bad)); err == nil {
			t.Errorf("%q: %v, want an error", bad, v)
		}
	}
	v, err := Decode([]byte(`{"b":1,"a":2,"b":[1e999,12345678901234567890,-0.0,"é"]}`))
	if err != nil {
		t.Fatal(err)
	}
	tmpl, _ := Parse("{{ v }}{{ v | tojson }}")
	got, err := tmpl.Render(map[string]any{"v": v}, Options{Limits: Limits{Output: 1000, Work: 100000}})
	if want := `{'b': [inf, 12345678901234567890, -0.0, 'é'], 'a': 2}{"b": [Infinity, 12345678901234567890, -0.0, "é"], "a": 2}`; got != want || err != nil {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}

// FuzzRender renders any template: without a panic, and in bounded time.
func FuzzRender(f *testing.F) {
	for _, source := range []string{
		"{% for m in messages %}{{ m.role | upper }}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
		"{% macro f(a, b=1) %}{{ a[::-1] }}{{ caller() }}{% endmacro %}{% call(x) f('a') %}{{ x }}{% endcall %}",
		"{% set ns = namespace(a=1) %}{% set ns.a = ns.a ~ 'x' %}{{ ns.a.split('x', 1) | tojson(indent=2) }}",
		"{{ '%5.2f|%-5s' % (1.5, 'a') }}{{ '{:>5}{!r}'.format(1, 'a') }}{{ 'a b'.center(9) }}",
		"{% raw %}{{{% endraw %}{# c #}{%- filter upper %}x{% endfilter -%} {{ 7 // -2 ** 3 % 5 }}",
		"{% generation %}{{ messages | map(attribute='role') | join(', ') }}{% endgeneration %}",
	} {
		f.Add(source)
	}
	m, err := Decode([]byte(talk))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, source string) {
		tmpl, err := Parse(source)
		if err != nil {
			return
		}
		got, err := tmpl.Render(map[string]any{"messages": m}, Options{Limits: Limits{Output: 1 << 16, Work: 1 << 22}})
		if err == nil && len(got) > 1<<16 {
			t.Errorf("%d bytes", len(got))
		}
	})
}
