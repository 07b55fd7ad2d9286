<?php

// Does one thing with clients/CredentialBroker.php: driver.php SECONDS ACTION CLIENT [URL]; says in JSON what came of it.

require __DIR__ . '/../../clients/CredentialBroker.php';

[, $seconds, $action, $client] = $argv;
$broker = new CredentialBroker(null, (float) $seconds);

function answer(CredentialBroker $broker, string $action, string $client, ?string $url): array
{
    if ($action === 'token') {
        return ['token' => $broker->token($client, ['min_ttl' => 30])['access_token']];
    }
    if ($action === 'headers') {
        return ['headers' => $broker->headers($client)];
    }
    require_once 'GuzzleHttp/autoload.php';
    $stack = GuzzleHttp\HandlerStack::create();
    $stack->unshift($broker->guzzle($client));
    $http = new GuzzleHttp\Client(['handler' => $stack, 'timeout' => 30]);
    try {
        $a = $http->post($url, ['body' => '{"functie":"bakker"}']);
    } catch (GuzzleHttp\Exception\ClientException $e) {
        $a = $e->getResponse();
    }
    return ['status' => $a->getStatusCode(), 'body' => (string) $a->getBody()];
}

try {
    $said = answer($broker, $action, $client, $argv[4] ?? null);
    $times = [];
    for ($i = 0; $i < (int) getenv('REPEAT'); $i++) {
        $start = hrtime(true);
        answer($broker, $action, $client, $argv[4] ?? null);
        $times[] = (hrtime(true) - $start) / 1000;
    }
    sort($times);
    if ($times) {
        $said['micros'] = $times[intdiv(count($times), 2)];
    }
} catch (CredentialBrokerException $e) {
    $said = ['code' => $e->brokerCode, 'detail' => $e->detail, 'retry_after' => $e->retryAfter];
}
echo json_encode($said, JSON_THROW_ON_ERROR), "\n";
