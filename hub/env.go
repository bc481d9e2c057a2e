package hub

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// defaultEndpoint is the hub itself.
const defaultEndpoint = "https://huggingface.co"

// FromEnvironment returns a client as the hub's other tools would set themselves up: HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH,
// HF_HUB_DISABLE_IMPLICIT_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE, with the older names of these, and XDG_CACHE_HOME;
// HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
func FromEnvironment() (*Client, error) {
	endpoint := cmp.Or(strings.TrimRight(os.Getenv("HF_ENDPOINT"), "/"), defaultEndpoint)
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("hub: HF_ENDPOINT %q is not the address of a server, such as %s", endpoint, defaultEndpoint)
	}
	home, err := homeFolder()
	if err != nil {
		return nil, err
	}
	cache, err := expand(cmp.Or(os.Getenv("HF_HUB_CACHE"), os.Getenv("HUGGINGFACE_HUB_CACHE"), filepath.Join(home, "hub")))
	if err != nil {
		return nil, err
	}
	c := &Client{
		Endpoint:  endpoint,
		Cache:     cache,
		Offline:   isOn("HF_HUB_OFFLINE") || isOn("TRANSFORMERS_OFFLINE"),
		http:      &http.Client{Transport: transport(), CheckRedirect: checkRedirect},
		sleep:     sleep,
		small:     smallTensor,
		mostSmall: mostSmall,
	}
	if isOn("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
		return c, nil
	}
	for _, name := range []string{"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} {
		if token := strings.TrimSpace(os.Getenv(name)); token != "" && c.token == "" {
			c.token, c.tokenFrom = token, name
		}
	}
	if c.token == "" {
		path, err := expand(cmp.Or(os.Getenv("HF_TOKEN_PATH"), filepath.Join(home, "token")))
		if err != nil {
			return nil, err
		}
		switch b, err := os.ReadFile(path); {
		case err == nil:
			c.token, c.tokenFrom = strings.TrimSpace(string(b)), path
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("hub: the token's file: %w", err)
		}
	}
	if strings.ContainsAny(c.token, "\r\n") {
		return nil, fmt.Errorf("hub: the token in %s has more than one line", c.tokenFrom)
	}
	return c, nil
}

// homeFolder is HF_HOME.
func homeFolder() (string, error) {
	if home := os.Getenv("HF_HOME"); home != "" {
		return expand(home)
	}
	if cache := os.Getenv("XDG_CACHE_HOME"); cache != "" {
		return expand(filepath.Join(cache, "huggingface"))
	}
	return expand(filepath.Join("~", ".cache", "huggingface"))
}

// expand resolves a leading ~ and variables, as the hub's Python library does.
func expand(path string) (string, error) {
	path = os.ExpandEnv(path)
	if rest, ok := strings.CutPrefix(path, "~"); ok && (rest == "" || os.IsPathSeparator(rest[0])) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("hub: where the cache lies is not known: give HF_HOME: %w", err)
		}
		path = home + rest
	}
	return filepath.Abs(path)
}

// isOn says whether a variable is set to what the hub's Python library takes for true.
func isOn(name string) bool {
	return slices.Contains([]string{"1", "ON", "YES", "TRUE"}, strings.ToUpper(os.Getenv(name)))
}

// answerTimeout is how long a server may take to begin its answer.
const answerTimeout = 60 * time.Second

// transport goes through the proxies of the environment. HTTP/2 would put all files through one connection, with a window that
// is small for the distance to the server.
func transport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone() // its Proxy is http.ProxyFromEnvironment
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.ForceAttemptHTTP2 = false
	t.ResponseHeaderTimeout = answerTimeout
	return t
}

// maxRedirects is that of net/http.
const maxRedirects = 10

// checkRedirect keeps the token from any other server than the one that it was meant for: net/http takes a host's other ports
// and subdomains for the same.
func checkRedirect(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	if req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
		req.Header.Del("Authorization")
	}
	req.Header.Del("Referer")
	switch {
	case len(via) >= maxRedirects:
		return &redirectError{first.Host, fmt.Sprintf("%d redirects", maxRedirects)}
	case first.Scheme == "https" && req.URL.Scheme != "https":
		return &redirectError{first.Host, "a redirect from https to http"}
	}
	return nil
}

// A redirectError is about redirects of a host that are not followed: asking again leads to the same.
type redirectError struct{ host, what string }

func (e *redirectError) Error() string { return e.host + ": " + e.what }
