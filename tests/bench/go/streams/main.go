// Streams opens many event streams at once, reads each to its end, and prints one line of JSON about them.
//
// A stream is complete if it had as many tokens as were asked for and then "data: [DONE]"; any other is broken. Times
// are milliseconds: the first event is timed from before the request, which includes its connection, and the gaps are
// those between the tokens of a stream. The program ends within -timeout, whatever the server does.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"net/http"
	"os"
	"sort"
	"strings"
	"sync"
	"time"
)

const (
	prefix = "data:"
	last   = "data: [DONE]"
)

type outcome struct {
	first float64
	gaps  []float64
	err   error
}

type report struct {
	Complete int     `json:"complete"`
	Broken   int     `json:"broken"`
	FirstP50 float64 `json:"first_p50_ms"`
	FirstP99 float64 `json:"first_p99_ms"`
	GapP50   float64 `json:"gap_p50_ms"`
	GapP99   float64 `json:"gap_p99_ms"`
	Why      string  `json:"why,omitempty"` // what was wrong with one of the broken
}

func read(ctx context.Context, client *http.Client, url, model string, tokens int) outcome {
	body := fmt.Sprintf(`{"model":%q,"stream":true,"max_tokens":%d,"messages":[{"role":"user","content":"How much?"}]}`,
		model, tokens)
	began := time.Now()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return outcome{err: err}
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return outcome{err: err}
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return outcome{err: errors.New(response.Status)}
	}
	return follow(response.Body, began, tokens)
}

func follow(body io.Reader, began time.Time, tokens int) outcome {
	result := outcome{gaps: make([]float64, 0, tokens)}
	seen, done, before := 0, false, began
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case !strings.HasPrefix(line, prefix):
			continue
		case done:
			result.err = errors.New("an event after the last")
			return result
		case line == last:
			done = true
			continue
		}
		now := time.Now()
		passed := float64(now.Sub(before)) / float64(time.Millisecond)
		if seen == 0 {
			result.first = passed
		} else {
			result.gaps = append(result.gaps, passed)
		}
		seen, before = seen+1, now
	}
	result.err = lines.Err()
	if result.err == nil && (!done || seen != tokens) {
		result.err = fmt.Errorf("%d of %d tokens, ended as it should: %t", seen, tokens, done)
	}
	return result
}

// Percentile answers the least value that this share of all is not above.
func percentile(values []float64, share float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sort.Float64s(values)
	return values[int(math.Max(0, math.Ceil(share*float64(len(values)))-1))]
}

func summary(outcomes []outcome) report {
	var r report
	var firsts, gaps []float64
	for _, o := range outcomes {
		if o.err != nil {
			r.Broken++
			r.Why = o.err.Error()
			continue
		}
		r.Complete++
		firsts = append(firsts, o.first)
		gaps = append(gaps, o.gaps...)
	}
	r.FirstP50, r.FirstP99 = percentile(firsts, 0.5), percentile(firsts, 0.99)
	r.GapP50, r.GapP99 = percentile(gaps, 0.5), percentile(gaps, 0.99)
	return r
}

func main() {
	url := flag.String("url", "", "where to ask for a chat completion")
	model := flag.String("model", "m", "the model to ask for")
	streams := flag.Int("streams", 300, "how many at once")
	tokens := flag.Int("tokens", 50, "how many tokens to ask each for")
	timeout := flag.Duration("timeout", time.Minute, "longest time for all")
	flag.Parse()
	if *url == "" || *streams < 1 || *tokens < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	outcomes := make([]outcome, *streams)
	start := make(chan struct{})
	var wait sync.WaitGroup
	for i := range outcomes {
		wait.Add(1)
		go func(result *outcome) {
			defer wait.Done()
			<-start
			*result = read(ctx, client, *url, *model, *tokens)
		}(&outcomes[i])
	}
	close(start)
	wait.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(summary(outcomes)); err != nil {
		log.Fatal(err)
	}
}
