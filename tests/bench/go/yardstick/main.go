// Yardstick is what POST /infer costs at the least that is reasonable: a plain net/http handler whose cap is a buffered
// channel, and which does nothing that isn't needed to read, count, answer or refuse.
//
// It reads a JSON object with a string "prompt", takes a permit or refuses with 429, waits LATENCY_MS, and answers what
// the router's simulated model answers. GET /counts says how many it served and how many it refused.
//
// It listens on the loopback interface, at PORT, and serves at most CAP at a time.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"bench/server"
)

const mostBytes = 4 << 20

type asked struct {
	Prompt *string `json:"prompt"`
}

type answer struct {
	ModelRef     string   `json:"modelRef"`
	Prompt       string   `json:"prompt"`
	KVEndpoints  []string `json:"kvEndpoints"`
	ProcessingMS int64    `json:"processingMs"`
}

type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
	Type   string `json:"type"`
}

type yardstick struct {
	latency         time.Duration
	permits         chan struct{}
	served, refused atomic.Int64
}

func (s *yardstick) infer(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "only POST")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostBytes))
	var request asked
	if err != nil || json.Unmarshal(body, &request) != nil || request.Prompt == nil {
		refuse(w, http.StatusBadRequest, "invalid_request", "the body must be a JSON object with a string `prompt`")
		return
	}
	select {
	case s.permits <- struct{}{}:
		defer func() { <-s.permits }()
	default:
		s.refused.Add(1)
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusTooManyRequests, "limit_reached", fmt.Sprintf("all %d permits are taken", cap(s.permits)))
		return
	}
	began := time.Now()
	if s.latency > 0 && !server.Pause(r, s.latency) {
		return
	}
	s.served.Add(1)
	reply(w, "application/json", http.StatusOK, answer{
		ModelRef:     "simulated",
		Prompt:       *request.Prompt,
		KVEndpoints:  []string{},
		ProcessingMS: time.Since(began).Milliseconds(),
	})
}

func refuse(w http.ResponseWriter, status int, code, detail string) {
	reply(w, "application/problem+json", status, problem{http.StatusText(status), status, detail, code, "about:blank"})
}

func reply(w http.ResponseWriter, contentType string, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		panic(err) // none of the values above fails
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

func (s *yardstick) counts(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintf(w, `{"served":%d,"refused":%d}`, s.served.Load(), s.refused.Load())
}

func main() {
	s := &yardstick{
		latency: server.Milliseconds("LATENCY_MS", 0),
		permits: make(chan struct{}, server.Number("CAP", 10, 1)),
	}
	http.HandleFunc("/infer", s.infer)
	http.HandleFunc("/counts", s.counts)
	log.Fatal(http.ListenAndServe(fmt.Sprintf("127.0.0.1:%d", server.Number("PORT", 9002, 1)), nil))
}
