package tokenizer

// Pre is a pre-tokenizer: how a BPE vocabulary's text is split into words before merging, and into what symbols a word is
// split.
type Pre struct {
	// Names are the values of tokenizer.ggml.pre that stand for it. A converter writes the first.
	Names []string
	// HF are the forms in which tokenizer.json describes it, each a list of steps: a pattern, StepDigit, StepDigits or
	// StepPunctuation. GPT-2's pattern stands for ByteLevel with use_regex.
	HF [][]string
	// Split are the patterns that split the text, one after another: each splits what the ones before it left.
	Split []string
	// IgnoreMerges: a word that is a token is that token, whatever merging would make of it.
	IgnoreMerges bool
	// AddBOS is what a file without tokenizer.ggml.add_bos_token means.
	AddBOS bool
	// Characters: merging begins with the characters of a word, not with its bytes in GPT-2's alphabet, and spells what is
	// no token in bytes, <0x00> to <0xFF>.
	Characters bool
	// EscapeSpaces: tokens have ▁ for a space, as SentencePiece's.
	EscapeSpaces bool
	// WholeLines: a word of line breaks that is a token is that token.
	WholeLines bool
	// AlwaysBOS: BOS is added whatever the file says.
	AlwaysBOS bool
}

// The steps in Pre.HF that are not patterns.
const (
	StepDigit       = "(single digits)"
	StepDigits      = "(runs of digits)"
	StepPunctuation = "(runs of punctuation)"
)

// GPT2Pattern is what ByteLevel with use_regex splits by.
const GPT2Pattern = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

// The parts of the patterns, and the patterns that stand in more than one place.
const (
	contractions = `(?i:'s|'t|'re|'ve|'m|'ll|'d)`
	word         = `[^\r\n\p{L}\p{N}]?\p{L}+`
	other        = ` ?[^\s\p{L}\p{N}]+[\r\n]*`
	blanks       = `\s*[\r\n]+|\s+(?!\S)|\s+`

	llama3Pattern = contractions + `|` + word + `|\p{N}{1,3}|` + other + `|` + blanks
	qwen2Pattern  = contractions + `|` + word + `|\p{N}|` + other + `|` + blanks
	qwen35Pattern = contractions + `|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|` + blanks
	seedPattern   = contractions + `|` + word + `|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|` + blanks

	// OpenAI's tiktoken has possessive quantifiers and one line break less, which makes no difference: what follows
	// them never needs what they hold back.
	tikWord    = `[^\r\n\p{L}\p{N}]?+\p{L}+`
	tikOther   = ` ?[^\s\p{L}\p{N}]++[\r\n]*`
	tikBlanks  = `\s*[\r\n]|\s+(?!\S)|\s+`
	tikPattern = contractions + `|` + tikWord + `|\p{N}{1,3}|` + tikOther + `|` + tikBlanks
	// lingPattern is the same with single digits (Ling, LLaDA-MoE).
	lingPattern = contractions + `|` + tikWord + `|\p{N}|` + tikOther + `|` + tikBlanks

	// Mistral's tekken and OpenAI's o200k keep capitals at the beginning of a word.
	upper         = `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
	lower         = `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
	smallWord     = `[^\r\n\p{L}\p{N}]?` + upper + `*` + lower + `+`
	capitalWord   = `[^\r\n\p{L}\p{N}]?` + upper + `+` + lower + `*`
	slashOther    = ` ?[^\s\p{L}\p{N}]+[\r\n/]*`
	tekkenPattern = smallWord + `|` + capitalWord + `|\p{N}|` + slashOther + `|` + blanks
	o200kPattern  = smallWord + contractions + `?|` + capitalWord + contractions + `?|\p{N}{1,3}|` + slashOther + `|` +
		blanks

	cjk            = `[一-龥ࠀ-一가-퟿]+`
	deepseekPunct  = `\s?[!-/:-~！-／：-～‘-‟　-。]+`
	deepseekV3Han  = `[一-龥぀-ゟ゠-ヿ]+`
	deepseekV3Main = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+" +
		`|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|` + blanks
	spark25Main = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+" +
		`|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+`

	// Groups of three digits, counted from the end of their run.
	threeDigits  = `\d{1,3}(?=(?:\d{3})*\b)`
	threeNumbers = `\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))`

	lines = `[^\n]+|[\n]+`

	// Kimi's words are o200k's without Chinese characters, which stand by themselves; A-[B] is A without B.
	kimiUpper   = `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}-[\p{Han}]]`
	kimiLower   = `[\p{Ll}\p{Lm}\p{Lo}\p{M}-[\p{Han}]]`
	kimiPattern = `[\p{Han}]+|[^\r\n\p{L}\p{N}]?` + kimiUpper + `*` + kimiLower + `+` + contractions + `?|` +
		`[^\r\n\p{L}\p{N}]?` + kimiUpper + `+` + kimiLower + `*` + contractions + `?|\p{N}{1,3}|` + other + `|` + blanks

	exaoneMoEPattern = contractions + `|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|` +
		` ?[^\s\p{L}\p{N}]+[\r\n/]?|` + tikBlanks
	jais2Pattern = contractions + `|` + word + `|\p{N}{1,3}|` + other + `|\s*[\r\n]+|` +
		`\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|` +
		`\s{1,2}(?!\S)|\s{1}`
	minicpm5Pattern = contractions + `|` + word + `|\p{N}+|` + other + `|` + blanks
	ufakzekaPattern = word + `|\p{N}|` + other + `|` + blanks // Turkish suffixes are no contractions

	youtuScripts = `[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+`
	youtuPattern = smallWord + contractions + `?|` + capitalWord + contractions + `?|\p{N}|` + slashOther + `|` + blanks
	afmoeScripts = "[\u4E00-\u9FFF\u3400-\u4DBF\uF900-\uFAFF\u3040-\u309F\u30A0-\u30FF\uFF65-\uFF9F\u2F00-\u2FDF" +
		"\u0E40-\u0E7F\u0E80-\u0EFF\u1780-\u17FF\u1000-\u109F\uAA60-\uAA7F\uA9E0-\uA9FF\uAC00-\uD7AF\u1100-\u11FF]+"

	bloomWords  = ` ?[^(\s|.,!?…。，、।۔،)]+`
	bloomNested = ` ?[^(\s|[.,!?…。，、।۔،])]+` // the same, as Oniguruma reads it
)

// deepseekLetters are the cased letters as DeepSeek's tokenizer.json lists them. Escapes keep editors from normalizing
// characters such as U+1F7D and U+212A.
const deepseekLetters = "\\s?[" +
	"A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293\u0295-\u02AF\u0370-\u0373" +
	"\u0376\u0377\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C\u038E-\u03A1\u03A3-\u03F5\u03F7-\u0481" +
	"\u048A-\u052F\u0531-\u0556\u10A0-\u10C5\u13A0-\u13F5\u13F8-\u13FD\u1C90-\u1CBA\u1CBD-\u1CBF\u1D00-\u1D2B" +
	"\u1D6B-\u1D77\u1D79-\u1D9A\u1E00-\u1F15\u1F18-\u1F1D\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59\u1F5B" +
	"\u1F5D\u1F5F-\u1F7D\u1F80-\u1FB4\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB" +
	"\u1FE0-\u1FEC\u1FF2-\u1FF4\u1FF6-\u1FFC\u2102\u2107\u210A-\u2113\u2115\u2119-\u211D\u2124\u2126\u2128" +
	"\u212A-\u212D\u212F-\u2134\u2139\u213C-\u213F\u2145-\u2149\u214E\u2183\u2184\u2C00-\u2C7B\u2C7E-\u2CE4" +
	"\u2CEB-\u2CEE\u2CF2\u2CF3\uA640-\uA66D\uA680-\uA69B\uA722-\uA76F\uA771-\uA787\uA78B-\uA78E\uAB70-\uABBF" +
	"\uFB00-\uFB06\uFB13-\uFB17\uFF21-\uFF3A\uFF41-\uFF5A\U00010400-\U0001044F\U000104B0-\U000104D3" +
	"\U000104D8-\U000104FB\U00010C80-\U00010CB2\U00010CC0-\U00010CF2\U000118A0-\U000118DF" +
	"\U0001E900-\U0001E943" +
	"]+"

// pres are the pre-tokenizers that are known. Where two rows share a pattern, the first is the usual one.
var pres = []Pre{
	{
		Names: []string{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
			"jina-v5-nano"},
		HF:    [][]string{{llama3Pattern}, {tikPattern}},
		Split: []string{llama3Pattern}, IgnoreMerges: true, AddBOS: true,
	},
	{
		Names: []string{"smaug-bpe", "dbrx", "glm4", "chatglm-bpe"},
		HF:    [][]string{{llama3Pattern}, {tikPattern}},
		Split: []string{llama3Pattern},
	},
	{
		Names: []string{"qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "kormo", "f2llmv2", "solar-open",
			"grok-2", "bailingmoe", "bailingmoe2", "llada-moe"},
		HF:    [][]string{{qwen2Pattern}, {lingPattern}},
		Split: []string{qwen2Pattern},
	},
	{
		Names: []string{"qwen35"},
		HF:    [][]string{{qwen35Pattern}},
		Split: []string{qwen35Pattern},
	},
	{
		Names: []string{"seed-coder"},
		HF:    [][]string{{seedPattern}},
		Split: []string{seedPattern},
	},
	{
		Names: []string{"gpt-2", "mpt", "olmo", "phi-2", "gigachat", "jais", "trillion", "exaone4", "granite-docling",
			"a.x-4.0", "mellum", "modern-bert", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code",
			"roberta-bpe"},
		HF:    [][]string{{GPT2Pattern}},
		Split: []string{GPT2Pattern},
	},
	{
		Names: []string{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"},
		HF:    [][]string{{StepDigit, GPT2Pattern}, {`\p{N}`, GPT2Pattern}},
		Split: []string{`\p{N}`, GPT2Pattern},
	},
	{
		Names: []string{"falcon"},
		HF:    [][]string{{StepPunctuation, GPT2Pattern, StepDigits, `[0-9][0-9][0-9]`}},
		Split: []string{"[\\p{P}$+<=>^~|`]+", GPT2Pattern, `[0-9][0-9][0-9]`},
	},
	{
		Names: []string{"deepseek-llm"},
		HF: [][]string{
			{`[\r\n]`, deepseekLetters, deepseekPunct, `\s+$`, cjk, StepDigit},
			{`[\r\n]`, deepseekLetters, deepseekPunct, `\s+$`, cjk, StepDigits},
		},
		Split: []string{`[\r\n]`, deepseekLetters, deepseekPunct, `\s+$`, cjk, `\p{N}+`},
	},
	{
		Names: []string{"deepseek-coder"},
		HF:    [][]string{{`[\r\n]`, `\s?\p{L}+`, `\s?\p{P}+`, cjk, StepDigit}},
		Split: []string{`[\r\n]`, `\s?\p{L}+`, `\s?\p{P}+`, cjk, `\p{N}`},
	},
	{
		Names: []string{"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"},
		HF:    [][]string{{`\p{N}{1,3}`, deepseekV3Han, deepseekV3Main}},
		Split: []string{`\p{N}{1,3}`, deepseekV3Han, deepseekV3Main},
	},
	{
		Names: []string{"tekken"},
		HF:    [][]string{{tekkenPattern}},
		Split: []string{tekkenPattern}, IgnoreMerges: true, AddBOS: true,
	},
	{
		Names: []string{"gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"},
		HF:    [][]string{{o200kPattern}},
		Split: []string{o200kPattern},
	},
	{
		Names: []string{"granite-embed-multi-97m"},
		HF:    [][]string{{o200kPattern}},
		Split: []string{o200kPattern}, IgnoreMerges: true,
	},
	{
		Names: []string{"tiny_aya", "cohere2moe"},
		HF:    [][]string{{threeDigits, o200kPattern}},
		Split: []string{threeDigits, o200kPattern},
	},
	{
		Names: []string{"kimi-k2"},
		Split: []string{kimiPattern},
	},
	{
		Names: []string{"youtu"},
		HF:    [][]string{{youtuScripts, youtuPattern}},
		Split: []string{youtuScripts, youtuPattern}, IgnoreMerges: true,
	},
	{
		Names: []string{"afmoe"},
		Split: []string{threeNumbers, afmoeScripts, deepseekV3Main},
	},
	{
		Names: []string{"spark2_5"},
		HF:    [][]string{{`\p{N}{1,3}`, deepseekV3Han, spark25Main, StepDigit}},
		Split: []string{`\p{N}{1,3}`, deepseekV3Han, spark25Main, `\p{N}`},
	},
	{
		Names: []string{"exaone-moe"},
		HF:    [][]string{{exaoneMoEPattern}},
		Split: []string{exaoneMoEPattern},
	},
	{
		Names: []string{"laguna"},
		HF:    [][]string{{lines, qwen2Pattern}},
		Split: []string{lines, qwen2Pattern},
	},
	{
		Names: []string{"minicpm5"},
		HF:    [][]string{{`\p{N}{1,3}`, minicpm5Pattern}},
		Split: []string{`\p{N}{1,3}`, minicpm5Pattern}, IgnoreMerges: true,
	},
	{
		Names: []string{"jais-2"},
		HF:    [][]string{{jais2Pattern}},
		Split: []string{jais2Pattern},
	},
	{
		Names: []string{"ufakzeka"},
		HF:    [][]string{{ufakzekaPattern}},
		Split: []string{ufakzekaPattern},
	},
	{
		// The second pattern matches nothing, in the places where it splits.
		Names: []string{"superbpe"},
		Split: []string{`\p{N}+`, `(?=(\d{3})+(?!\d))`},
	},
	{
		Names: []string{"chameleon"},
		Split: []string{`<sentinel:[0-9]+>`, `(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z`, `([\t\n]|    |  )`, `\p{N}`,
			"[\\p{P}!-/:-@\\[-`{-~]", GPT2Pattern}, AddBOS: true,
	},
	{
		Names: []string{"whitespace"},
		Split: []string{`\S+`}, Characters: true,
	},
	{
		Names: []string{"gemma4", "granite-embed-multi-311m"},
		Split: []string{lines}, Characters: true, EscapeSpaces: true, WholeLines: true, AlwaysBOS: true,
	},
	{
		Names: []string{"sarvam-moe"},
		Split: []string{lines}, Characters: true, EscapeSpaces: true,
	},
	{
		Names: []string{"bloom", "gpt3-finnish", "poro-chat"},
		HF:    [][]string{{bloomWords}, {bloomNested}},
		Split: []string{bloomWords},
	},
	{
		Names: []string{"viking"},
		HF:    [][]string{{bloomWords, StepDigit}, {bloomNested, StepDigit}},
		Split: []string{bloomWords, `\p{N}`},
	},
	{
		// What llama.cpp assumes of a file that names none.
		Names: []string{"default"},
		Split: []string{"[\\p{P}$+<=>^~|]+", GPT2Pattern, `\p{N}+`, `[0-9][0-9][0-9]`},
	},
}

// PreByName finds a value of tokenizer.ggml.pre.
func PreByName(name string) (*Pre, bool) {
	for i := range pres {
		for _, n := range pres[i].Names {
			if n == name {
				return &pres[i], true
			}
		}
	}
	return nil, false
}

// PreNames lists the names that are known.
func PreNames() []string {
	var names []string
	for _, p := range pres {
		names = append(names, p.Names...)
	}
	return names
}

// PresBySteps finds the pre-tokenizers that tokenizer.json describes by the given steps (see Pre.HF). There may be
// several, which differ in IgnoreMerges.
func PresBySteps(steps []string) []*Pre {
	var found []*Pre
	for i := range pres {
		for _, form := range pres[i].HF {
			if samePatterns(form, steps) {
				found = append(found, &pres[i])
				break
			}
		}
	}
	return found
}

func samePatterns(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if canonical(a[i]) != canonical(b[i]) {
			return false
		}
	}
	return true
}
