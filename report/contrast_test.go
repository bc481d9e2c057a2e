package report

import (
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"
)

// TestContrast: the text of every cell of a heat map can be read on every colour, in the light and in the dark: WCAG 2.2
// asks for a contrast of 4.5.
func TestContrast(t *testing.T) {
	themes := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(styleCSS, -1)
	if len(themes) != 2 {
		t.Fatalf("%d themes, want light and dark", len(themes))
	}
	for i, theme := range themes {
		colour := map[string]rgb{}
		for _, m := range regexp.MustCompile(`--([a-z-]+): (#[0-9a-f]{6});`).FindAllStringSubmatch(theme[1], -1) {
			colour[m[1]] = parseColour(t, m[2])
		}
		for _, ends := range [][2]string{{"cold", "hot"}, {"few", "many"}} {
			least, at := math.Inf(1), 0
			for heat := range 101 {
				background := mix(colour[ends[0]], colour[ends[1]], float64(heat)/100)
				text := colour["on-cold"]
				if shade := (heatCell{Heat: heat}).Shade(); shade == "dark" || shade == "mid" && i == 1 {
					text = colour["on-hot"]
				}
				if c := contrast(background, text); c < least {
					least, at = c, heat
				}
			}
			if least < 4.5 {
				t.Errorf("theme %d, %s to %s: contrast %.2f at %d", i, ends[0], ends[1], least, at)
			}
		}
		for _, name := range []string{"ink", "soft", "accent", "good", "bad"} {
			for _, background := range []string{"page", "card"} {
				if c := contrast(colour[name], colour[background]); c < 4.5 {
					t.Errorf("theme %d: %s on %s: contrast %.2f", i, name, background, c)
				}
			}
		}
	}
	// The rules that the loop above goes by.
	for _, rule := range []string{".heat td.dark { color: var(--on-hot); }", ".heat td.mid { color: var(--on-hot); }"} {
		if !strings.Contains(styleCSS, rule) {
			t.Errorf("no %q", rule)
		}
	}
	black, white := rgb{}, rgb{1, 1, 1}
	if c := contrast(black, white); c != 21 {
		t.Errorf("black on white has contrast %g, want 21", c)
	}
}

type rgb [3]float64 // linear light

func parseColour(t *testing.T, s string) (c rgb) {
	t.Helper()
	for i := range c {
		var v int
		if _, err := fmt.Sscanf(s[1+2*i:3+2*i], "%x", &v); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if c[i] = float64(v) / 255; c[i] <= 0.04045 {
			c[i] /= 12.92
		} else {
			c[i] = math.Pow((c[i]+0.055)/1.055, 2.4)
		}
	}
	return c
}

// mix is CSS's color-mix in oklab (CSS Color Module Level 4): linear light to cone responses, their cube roots, Lab.
// Lab is linear in the roots, so they can be mixed in its place.
func mix(a, b rgb, share float64) rgb {
	toLMS := [3]rgb{{0.4122214708, 0.5363325363, 0.0514459929}, {0.2119034982, 0.6806995451, 0.1073969566},
		{0.0883024619, 0.2817188376, 0.6299787005}}
	toRGB := [3]rgb{{4.0767416621, -3.3077115913, 0.2309699292}, {-1.2684380046, 2.6097574011, -0.3413193965},
		{-0.0041960863, -0.7034186147, 1.7076147010}}
	times := func(m [3]rgb, v rgb) (out rgb) {
		for i := range m {
			for j := range v {
				out[i] += m[i][j] * v[j]
			}
		}
		return out
	}
	la, lb := times(toLMS, a), times(toLMS, b)
	var mixed rgb
	for i := range mixed {
		root := (1-share)*math.Cbrt(la[i]) + share*math.Cbrt(lb[i])
		mixed[i] = root * root * root
	}
	return times(toRGB, mixed)
}

// contrast is WCAG's.
func contrast(a, b rgb) float64 {
	luminance := func(c rgb) float64 {
		return 0.2126*min(max(c[0], 0), 1) + 0.7152*min(max(c[1], 0), 1) + 0.0722*min(max(c[2], 0), 1)
	}
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}
