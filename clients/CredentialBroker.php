<?php

declare(strict_types=1);

/**
 * Ask the credential broker for tokens. One file, PHP 7.4 or newer with its curl extension.
 *
 * Ask for every call to the API and keep nothing: the broker keeps tokens fresh, an application cannot.
 *
 *     $broker = new CredentialBroker();
 *     $stack = GuzzleHttp\HandlerStack::create();
 *     $stack->unshift($broker->guzzle('vdab'));
 *     $http = new GuzzleHttp\Client(['handler' => $stack, 'timeout' => 30]);
 *     $answer = $http->get($url);
 *
 * The middleware does what each call needs: it adds the headers that the API wants and, if the API answers 401, tells
 * the broker and repeats the call once if there is another token. Unshift it, so that it stands before Guzzle's own.
 * It switches redirects off: to another host, the API key would go along. token(), headers() and reject() are the same
 * by hand. A 503 or 429 of the broker is waited for as its Retry-After says, within $patience; every other refusal is a
 * CredentialBrokerException at once: its brokerCode is for the program, its detail says what to do.
 */
final class CredentialBroker
{
    private const ENVIRONMENT = 'CREDENTIAL_BROKER_SOCKET';
    private const MAX_ANSWER = 8 << 20; // bytes
    private const MAX_MORE = 2000; // characters of moreInformation; the broker takes 2048
    private const EAGAIN = 11;

    private string $socket;
    private float $timeout;
    private float $patience;

    /**
     * @param float $timeout  seconds for each answer
     * @param float $patience seconds to spend, in all, on waiting as Retry-After says; 0: none
     */
    public function __construct(?string $socket = null, float $timeout = 10.0, float $patience = 10.0)
    {
        $this->socket = $socket ?? self::defaultSocket();
        $this->timeout = $timeout;
        $this->patience = $patience;
    }

    /** $CREDENTIAL_BROKER_SOCKET, the broker that this user has started by hand, or the system's. */
    public static function defaultSocket(): string
    {
        $named = (string) getenv(self::ENVIRONMENT);
        if ($named !== '') {
            return $named;
        }
        $dir = (string) getenv('XDG_RUNTIME_DIR');
        $own = "$dir/credential-broker/broker.sock";
        return $dir !== '' && @fileowner('/proc/self') !== 0 && @file_exists($own) ? $own : '/run/credential-broker/broker.sock';
    }

    /**
     * A token as in RFC 6749, section 5.1: access_token, token_type, expires_in …
     *
     * @param array $options scope, audience, resource, min_ttl (seconds)
     */
    public function token(string $client, array $options = []): array
    {
        return $this->json($client, 'token', $options);
    }

    /** All headers that a call to the client's API needs, by name. Options as of token(). */
    public function headers(string $client, array $options = []): array
    {
        return $this->json($client, 'headers', $options);
    }

    /**
     * Tell that the API refused a token. Ask again afterwards, and repeat the call once if the token is another.
     *
     * @param ?string $more the text moreInformation in API Connect's answer: by it the broker tells a refused API key
     *                      (exception "api_key_rejected") from a refused token
     */
    public function reject(string $client, ?string $accessToken, int $status = 401, ?string $more = null): array
    {
        // Cut at a character's end.
        $more = preg_replace('/^(.{0,' . self::MAX_MORE . '}).*$/su', '$1', (string) $more) ?? '';
        $body = array_filter(['access_token' => $accessToken, 'status' => $status, 'more_information' => $more]);
        return $this->json($client, 'reject', [], json_encode($body, JSON_THROW_ON_ERROR));
    }

    /** A middleware for Guzzle's HandlerStack. Options as of token(). */
    public function guzzle(string $client, array $options = []): callable
    {
        return fn (callable $next): callable => function ($request, array $how) use ($next, $client, $options) {
            $how['allow_redirects'] = false;
            $how['http_errors'] = $how['http_errors'] ?? true;
            $sent = $this->headers($client, $options);
            $inner = ['http_errors' => false] + $how; // so that a 401 is seen here
            return $next(self::with($request, $sent), $inner)->then(
                function ($answer) use ($request, $next, $how, $inner, $client, $options, $sent) {
                    $body = $request->getBody();
                    if ($answer->getStatusCode() === 401 && ($body->isSeekable() || $body->getSize() === 0)) {
                        $this->reject($client, self::tokenIn($sent), 401, self::moreInformation((string) $answer->getBody()));
                        if ($answer->getBody()->isSeekable()) {
                            $answer->getBody()->rewind();
                        }
                        $now = $this->headers($client, $options);
                        if ($now !== $sent) {
                            $body->isSeekable() && $body->rewind();
                            return $next(self::with($request, $now), $how);
                        }
                    }
                    if ($how['http_errors'] && $answer->getStatusCode() >= 400) {
                        throw GuzzleHttp\Exception\RequestException::create($request, $answer);
                    }
                    return $answer;
                }
            );
        };
    }

    private static function with($request, array $headers)
    {
        foreach ($headers as $name => $value) {
            $request = $request->withHeader($name, $value);
        }
        return $request;
    }

    private static function tokenIn(array $headers): ?string
    {
        foreach ($headers as $name => $value) {
            if (strtolower((string) $name) === 'authorization') {
                return explode(' ', $value, 2)[1] ?? null;
            }
        }
        return null;
    }

    private static function moreInformation(string $body): ?string
    {
        $more = json_decode($body, true)['moreInformation'] ?? null;
        return is_string($more) ? $more : null;
    }

    private function json(string $client, string $what, array $options, ?string $body = null): array
    {
        if (isset($options['min_ttl'])) {
            $options['min_ttl'] .= 's';
        }
        $query = http_build_query($options);
        $path = '/v1/clients/' . rawurlencode($client) . "/$what" . ($query === '' ? '' : "?$query");
        $until = microtime(true) + $this->patience;
        while (true) {
            try {
                return $this->once($path, $body);
            } catch (CredentialBrokerException $e) {
                $wait = $e->retryAfter;
                if (!in_array($e->status, [429, 503], true) || $wait <= 0 || microtime(true) + $wait > $until) {
                    throw $e;
                }
                sleep($wait);
            }
        }
    }

    private function once(string $path, ?string $body): array
    {
        $until = microtime(true) + $this->timeout;
        while (true) {
            $raw = '';
            $curl = curl_init("http://broker$path");
            $headers = ['Accept: application/json'];
            if ($body !== null) {
                curl_setopt($curl, CURLOPT_POSTFIELDS, $body);
                $headers[] = 'Content-Type: application/json';
            }
            curl_setopt_array($curl, [
                CURLOPT_UNIX_SOCKET_PATH => $this->socket,
                CURLOPT_PROXY => '',
                CURLOPT_HTTPHEADER => $headers,
                CURLOPT_USERAGENT => 'credential-broker-client',
                CURLOPT_NOSIGNAL => true,
                CURLOPT_TIMEOUT_MS => (int) ($this->timeout * 1000),
                CURLOPT_WRITEFUNCTION => function ($curl, string $part) use (&$raw): int {
                    $raw .= $part;
                    return strlen($raw) > self::MAX_ANSWER ? 0 : strlen($part);
                },
            ]);
            if (curl_exec($curl) === true) {
                return self::read(curl_getinfo($curl, CURLINFO_RESPONSE_CODE), $raw);
            }
            // The kernel's queue of connections is full for a moment.
            if (curl_getinfo($curl, CURLINFO_OS_ERRNO) !== self::EAGAIN || microtime(true) > $until) {
                throw new CredentialBrokerException('unreachable', "no broker answers on {$this->socket}: " . curl_strerror(curl_errno($curl))
                    . '; is it running? (' . self::ENVIRONMENT . ' names another socket)');
            }
            usleep(10000);
        }
    }

    /** What to do, and whom the broker sees. */
    private static function detail(array $document): string
    {
        $detail = (string) ($document['detail'] ?? '');
        if (is_string($document['identity'] ?? null)) {
            $clients = implode(', ', (array) ($document['clients'] ?? []));
            $detail .= " (you are seen as: {$document['identity']}" . ($clients === '' ? '' : "; you may use: $clients") . ')';
        }
        return $detail;
    }

    /** The JSON object of an answer; a refusal is thrown. */
    private static function read(int $status, string $raw): array
    {
        $document = json_decode($raw, true, 16);
        if (!is_array($document) || substr(ltrim($raw), 0, 1) !== '{' || ($status !== 200 && !is_string($document['code'] ?? null))) {
            throw new CredentialBrokerException('unreachable', "the answer, with status $status, is not the broker's", $status);
        }
        if ($status === 200) {
            return $document;
        }
        throw new CredentialBrokerException($document['code'], self::detail($document), $status, (int) ($document['retry_after'] ?? 0));
    }
}

/** What the broker refused (an error document of RFC 9457), or that it did not answer (code "unreachable"). */
final class CredentialBrokerException extends RuntimeException
{
    public string $brokerCode; // see docs/errors.md; "quarantined", "not_allowed", …
    public string $detail; // a sentence that says what to do
    public int $status; // HTTP; 0: there was no answer
    public int $retryAfter; // seconds; 0: it is not known when trying again may help

    public function __construct(string $code, string $detail, int $status = 0, int $retryAfter = 0)
    {
        parent::__construct("$code: $detail");
        $this->brokerCode = $code;
        $this->detail = $detail;
        $this->status = $status;
        $this->retryAfter = $retryAfter;
    }
}
