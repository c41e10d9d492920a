// Upstream is a model server that costs next to nothing, to stand behind the routers that are measured.
//
// A POST, to whatever path, is answered with a chat completion after LATENCY_MS. With "stream": true in its body the
// answer is a stream of TOKENS events, TOKEN_MS apart, and "data: [DONE]"; "max_tokens" in the body asks for fewer.
// GET /counts says how many POSTs there were, how many are in progress, and how many were at most. Any other GET is
// answered with a list of one model, which satisfies health checks.
//
// It listens on the loopback interface, at PORT of ADDRESSES addresses from 127.0.0.1 on, which stand for as many servers.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"bench/server"
)

const (
	models     = `{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"bench"}]}`
	completion = `{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,` +
		`"message":{"role":"assistant","content":"Enough."},"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6}}`
	event = `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,` +
		`"delta":{"content":"token "},"finish_reason":null}]}` + "\n\n"
	done = "data: [DONE]\n\n"

	perSubnet = 250
)

type upstream struct {
	latency, gap          time.Duration
	tokens                int
	total, inFlight, most atomic.Int64
}

type asked struct {
	Stream    bool `json:"stream"`
	MaxTokens *int `json:"max_tokens"`
}

func (s *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.Method == http.MethodPost:
		s.infer(w, r)
	case r.URL.Path == "/counts":
		fmt.Fprintf(w, `{"total":%d,"in_flight":%d,"most":%d}`, s.total.Load(), s.inFlight.Load(), s.most.Load())
	default:
		io.WriteString(w, models)
	}
}

func (s *upstream) infer(w http.ResponseWriter, r *http.Request) {
	s.enter()
	defer s.inFlight.Add(-1)
	body, err := io.ReadAll(r.Body)
	var request asked
	if err != nil || json.Unmarshal(body, &request) != nil {
		http.Error(w, "the body must be a JSON object", http.StatusBadRequest)
		return
	}
	if s.latency > 0 && !server.Pause(r, s.latency) {
		return
	}
	if request.Stream {
		s.stream(w, r, request)
	} else {
		io.WriteString(w, completion)
	}
}

func (s *upstream) enter() {
	s.total.Add(1)
	now := s.inFlight.Add(1)
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
}

// Tokens are due at fixed times after the first: a late one doesn't delay the next.
func (s *upstream) stream(w http.ResponseWriter, r *http.Request, request asked) {
	w.Header().Set("Content-Type", "text/event-stream")
	flusher := w.(http.Flusher)
	tokens := s.tokens
	if request.MaxTokens != nil && *request.MaxTokens < tokens {
		tokens = *request.MaxTokens
	}
	began := time.Now()
	for i := 0; i < tokens; i++ {
		if !server.Pause(r, time.Until(began.Add(time.Duration(i)*s.gap))) {
			return
		}
		io.WriteString(w, event)
		flusher.Flush()
	}
	io.WriteString(w, done)
}

func main() {
	s := &upstream{latency: server.Milliseconds("LATENCY_MS", 0), gap: server.Milliseconds("TOKEN_MS", 20), tokens: server.Number("TOKENS", 50, 0)}
	port, addresses := server.Number("PORT", 9001, 0), server.Number("ADDRESSES", 1, 1)
	failed := make(chan error)
	for i := 0; i < addresses; i++ {
		address := net.IPv4(127, 0, byte(i/perSubnet), byte(1+i%perSubnet))
		listener, err := net.Listen("tcp4", fmt.Sprintf("%s:%d", address, port))
		if err != nil {
			log.Fatal(err)
		}
		go func() { failed <- http.Serve(listener, s) }()
	}
	log.Fatal(<-failed)
}
