"""Errors by class: the wordings of vendors and of compatible servers, and what is never shown."""

from __future__ import annotations

from time import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_infer.api.retry import Retry, may_have_been_billed
from swe_infer.errors import (
    AuthenticationFailed,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ProviderFatal,
    QuotaExhausted,
    RateLimited,
    RateLimits,
    RequestError,
    TransientError,
)
from swe_infer.providers.faults import PromptFiltered, classify, one_line


def of(status: int | None, body: Any, headers: dict[str, str] | None = None) -> RequestError:
    return classify(status, body, headers or {}, where="host, model")


def openai(message: str, code: str | None = None, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in it).",
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 198000 + 8192 > 200000, decrease input length",
        "the request exceeds the available context size, try increasing it",
        "Input is too long for requested model.",
        "Requested token count exceeds the model's maximum context length of 131072 tokens.",
        "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
        "Please reduce the length of the messages or completion.",
        # cline/cline #3120 (xAI); MoonshotAI/kimi-cli #2011; huggingface/chat-ui #340 and meta-llama/llama #1103
        # (text-generation-inference); tashfeenahmed/freellmapi #873 (Z.ai); QwenLM/qwen-code #2384 (DashScope)
        "This model's maximum prompt length is 131072 but the request contains 136973 tokens.",
        "Invalid request: Your request exceeded model token limit: 262144 (requested: 269030)",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 1512. Given: 1000 `inputs` tokens and "
        "1024 `max_new_tokens`",
        "Input validation error: `inputs` must have less than 4096 tokens. Given: 4545",
        "Prompt exceeds max length",
        "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 983616]",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        "prompt token count of 128531 exceeds the limit of 128000",
        "The sum of 'inputs' tokens and 'max_new_tokens' must not exceed 4097.",
        "The total number of tokens in the prompt exceeds the limit of 4081 tokens.",
    ],
)
def test_every_server_s_wording_of_an_overflow_is_known(message: str) -> None:
    assert type(of(400, openai(message))) is ContextOverflow
    assert type(of(413, {"error": message})) is ContextOverflow


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota"), QuotaExhausted),
        (429, openai("Billing hard limit has been reached", "billing_hard_limit_reached"), QuotaExhausted),
        (402, {"error": {"message": "Insufficient credits"}}, QuotaExhausted),
        # continuedev/continue #11227 (OpenRouter); a 402 means that the account or key needs more credit
        # (openrouter.ai/docs/api-reference/errors)
        (402, {"error": {"message": "Prompt tokens limit exceeded: 64128 > 6964. To increase, visit https://openrouter.ai/settings/credits", "code": 402}}, QuotaExhausted),  # noqa: E501
        (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}}, QuotaExhausted),  # noqa: E501
        (403, {"type": "error", "error": {"type": "billing_error", "message": "pay"}}, QuotaExhausted),
        (429, openai("Rate limit reached", "rate_limit_exceeded", "tokens"), RateLimited),
        (429, openai("Request too large for gpt-4o: Limit 30000, Requested 60000.", "rate_limit_exceeded", "tokens"), InvalidRequest),  # noqa: E501
        (429, "slow down", RateLimited),
        (503, openai("overloaded", None, "server_error"), Overloaded),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, Overloaded),
        (None, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, Overloaded),
        (None, {"type": "error", "error": {"type": "api_error", "message": "Internal"}}, TransientError),
        (None, openai("broke", "server_error"), TransientError),
        (None, openai("try later", "rate_limit_exceeded"), RateLimited),
        (500, "<html><title>Internal Server Error</title></html>", TransientError),
        (502, "", TransientError),
        (504, None, TransientError),
        (520, "", TransientError),
        (408, None, TransientError),
        (409, None, TransientError),
        (301, "", ProviderFatal),
        (401, openai("Incorrect API key", "invalid_api_key"), AuthenticationFailed),
        (401, "", AuthenticationFailed),
        (403, openai("Country not supported", None, "request_forbidden"), AuthenticationFailed),
        (403, "<html><title>Attention Required!</title></html>", InvalidRequest),
        (404, openai("The model does not exist", "model_not_found"), ModelNotFound),
        (404, {"error": {"code": "DeploymentNotFound", "message": "no such deployment"}}, ModelNotFound),
        (404, {"detail": "Not Found"}, ModelNotFound),
        (400, openai("Unsupported parameter", "unsupported_parameter"), InvalidRequest),
        (400, openai("Unrecognized request argument supplied: context_length"), InvalidRequest),
        (400, openai("The prompt exceeds the model's context_length"), ContextOverflow),
        (400, openai("Error code: 400 - context_length_exceeded"), ContextOverflow),
        (400, {"message": "bad", "object": "error", "type": "BadRequestError", "code": 400}, InvalidRequest),
        (422, {"detail": [{"msg": "field required"}]}, InvalidRequest),
        (413, "", InvalidRequest),
        # anthropics/claude-code #2127
        (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "You have reached your specified API usage limits. You will regain access on 2025-07-01 at 00:00 UTC."}}, QuotaExhausted),  # noqa: E501
        # pollinations/pollinations #12136 (Fireworks)
        (412, openai("Account p is suspended, possibly due to reaching the monthly spending limit or failure to pay past invoices.", "PRECONDITION_FAILED", "error"), QuotaExhausted),  # noqa: E501
        # NousResearch/hermes-agent #26847 (xAI)
        (429, {"code": "Some resource has been exhausted", "error": "Your team x has either used all available credits or reached its monthly spending limit."}, QuotaExhausted),  # noqa: E501
        # MiniMax-AI/MiniMax-M2 #62; modelscope/modelscope #1691
        (500, {"type": "error", "error": {"type": "api_error", "message": "insufficient balance (1008)"}}, QuotaExhausted),  # noqa: E501
        (429, {"error": {"http_code": "429", "message": "insufficient balance (1008)", "type": "insufficient_balance_error"}}, QuotaExhausted),  # noqa: E501
        # docs.z.ai/api-reference/api-code
        (429, {"error": {"code": "1113", "message": "您的账户已欠费"}}, QuotaExhausted),
        (429, {"error": {"code": "1308", "message": "已达到 5 小时的使用上限"}}, QuotaExhausted),
        (429, {"error": {"code": "1302", "message": "您当前使用该 API 的并发数过高"}}, RateLimited),
        (400, {"error": {"code": "1261", "message": "Prompt 超长"}}, ContextOverflow),
        (400, {"error": {"code": "1301", "message": "系统检测到输入"}}, PromptFiltered),
        (400, {"error": {"code": "1211", "message": "模型不存在"}}, ModelNotFound),
        # a code like these of another vendor, with a type (docs.mistral.ai)
        (429, {"object": "error", "message": "Rate limited", "type": "rate_limited", "code": "1300"}, RateLimited),
        (400, openai("bad", "1301"), InvalidRequest),
        # platform.moonshot.ai/docs/api/chat, error table
        (429, {"error": {"type": "exceeded_current_quota_error", "message": "Your account is suspended, please check your plan and billing details"}}, QuotaExhausted),  # noqa: E501
        # help.aliyun.com/en/model-studio/error-code: the same code is a limit of a minute with this link
        (400, openai("Access denied, please make sure your account is in good standing.", "Arrearage", "Arrearage"), QuotaExhausted),  # noqa: E501
        (429, openai("You exceeded your current quota, please check your plan and billing details. For details, see: https://help.aliyun.com/zh/model-studio/error-code#token-limit", "insufficient_quota", "insufficient_quota"), RateLimited),  # noqa: E501
        (400, openai("Input data may contain inappropriate content.", "data_inspection_failed", "data_inspection_failed"), PromptFiltered),  # noqa: E501
        # GitHub Models' limit of a prompt
        (413, {"error": {"code": "tokens_limit_reached", "message": "Request body too large for gpt-4o model. Max size: 8000 tokens."}}, ContextOverflow),  # noqa: E501
        # Cerebras (inference-docs.cerebras.ai/support/error)
        (429, {"message": "Tokens per day limit exceeded - too many tokens processed.", "type": "too_many_tokens_error", "param": "quota", "code": "token_quota_exceeded"}, QuotaExhausted),  # noqa: E501
        (429, {"message": "Requests per minute limit exceeded - too many requests sent.", "type": "too_many_requests_error", "param": "quota", "code": "request_quota_exceeded"}, RateLimited),  # noqa: E501
        # Aider-AI/aider #3936 (OpenRouter); anthropics/claude-code #236 (Bedrock)
        # gptme/gptme #1449
        (403, {"error": {"message": "Key limit exceeded (monthly limit). Manage it using https://openrouter.ai/settings/keys", "code": 403}}, QuotaExhausted),  # noqa: E501
        (429, {"error": {"message": "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model requests per day", "code": 429}}, QuotaExhausted),  # noqa: E501
        (429, {"message": "Too many tokens, please wait before trying again."}, RateLimited),
        (429, {"message": "Too many tokens per day, please wait before trying again."}, QuotaExhausted),
        # ranxianglei/billion-context-pi #169: in the stream of a gateway, and no overflow
        (None, {"message": "Too many tokens, please wait before trying again."}, RateLimited),
        (None, {"error": {"type": "throttlingException", "message": "Too many tokens, please wait before trying again."}}, RateLimited),  # noqa: E501
        # deepseek-ai/awesome-deepseek-integration #13; xAI: UKGovernmentBEIS/inspect_ai #2267, Wei-Shaw/sub2api #4785
        (400, openai("Content Exists Risk", "invalid_request_error"), PromptFiltered),
        (403, {"code": "The caller does not have permission to execute the specified operation", "error": "Content violates usage guidelines. Team: x, Model: grok-4-0709, Failed check: SAFETY_CHECK_TYPE_BIO"}, PromptFiltered),  # noqa: E501
        (403, {"code": "permission-denied", "error": "Content violates usage guidelines. "}, PromptFiltered),
        (403, {"code": "permission-denied", "error": "Access to the chat endpoint is denied."}, AuthenticationFailed),
        (400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xx***yy."}, AuthenticationFailed),  # noqa: E501
        # openai.types.responses.ResponseError
        (None, openai("blocked", "bio_policy"), PromptFiltered),
        # docs.together.ai/docs/error-codes: 403; Anthropic's 403 is about the account
        (403, openai("Input token count + max_tokens must be less than the context length of the model."), ContextOverflow),  # noqa: E501
        (403, {"type": "error", "error": {"type": "permission_error", "message": "no access to the context window of 1M"}}, AuthenticationFailed),  # noqa: E501
        # text-generation-inference, router/src/server.rs: InferError::GenerationError
        (424, {"error": "Request failed during generation: Server error: CUDA error", "error_type": "generation"}, TransientError),  # noqa: E501
        # router.huggingface.co, for a model that its vendor has retired
        (410, {"error": "The requested model is deprecated and no longer supported by provider 'cerebras'."}, ModelNotFound),  # noqa: E501
        # docs.databricks.com: the error object of its REST APIs
        (403, {"error_code": "PERMISSION_DENIED", "message": "Invalid access token."}, AuthenticationFailed),
        # cline/cline #13194 (OpenRouter): the words of its vendor; the vendor's account is not the user's
        (400, {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": '{"error":{"message":"This model\'s maximum context length is 262144 tokens."}}', "provider_name": "Nvidia"}}}, ContextOverflow),  # noqa: E501
        (429, {"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": '{"error":{"message":"Insufficient balance"}}'}}}, RateLimited),  # noqa: E501
        # OpenRouterTeam/ai-sdk-provider #24: now and then, and not the user's key, unless it is one of the vendor
        (401, {"error": {"message": "Provider returned error", "code": 401, "metadata": {"raw": '{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}', "provider_name": "Anthropic", "isErrorUpstreamFault": True}}}, TransientError),  # noqa: E501
        (401, {"error": {"message": "Provider returned error", "code": 401, "metadata": {"raw": "no", "provider_name": "Anthropic", "is_byok": True}}}, AuthenticationFailed),  # noqa: E501
        # OpenRouter's account at a vendor: the words of anomalyco/opencode #14252 in the form of cline/cline #13194
        (400, {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": '{"error":{"message":"insufficient balance (1008)"}}', "provider_name": "Minimax"}}}, TransientError),  # noqa: E501
        # openrouter.ai/docs/api/errors: the metadata of a moderation error
        (403, {"error": {"message": "Your input was flagged", "code": 403, "metadata": {"reasons": ["violence"], "flagged_input": "kill the...", "provider_name": "OpenAI", "model_slug": "m"}}}, PromptFiltered),  # noqa: E501
        # BerriAI/litellm #36729, #14144
        (429, {"error": {"message": "Your AI usage allowance has been reached.", "type": "budget_exceeded", "code": "429"}}, QuotaExhausted),  # noqa: E501
        (400, {"error": {"message": "litellm.BadRequestError: OpenAIException - Budget has been exceeded! Current cost: 14.1, Max budget: 100.", "type": None, "param": None, "code": "400"}}, QuotaExhausted),  # noqa: E501
        (429, {"error": {"message": "No deployments available - crossed budget: Exceeded budget for deployment", "type": "None", "code": "429"}}, QuotaExhausted),  # noqa: E501
        # Gitlawb/openclaude #1125: OpenRouter's own error
        (402, {"error": {"message": "This request requires more credits, or fewer max_tokens.", "code": 402, "metadata": {"provider_name": None}}}, QuotaExhausted),  # noqa: E501
        (400, openai("The response was filtered", "content_filter"), PromptFiltered),
        (400, openai("flagged", "invalid_prompt"), PromptFiltered),
        # Gemini, ai.google.dev/gemini-api/docs/billing: credit paid in advance, and the project's own cap
        (429, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Your prepayment credits are depleted. Please go to AI Studio at https://ai.studio/projects to manage your project and billing."}}, QuotaExhausted),  # noqa: E501
        (429, [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Your project has exceeded its monthly spending cap. Please go to AI Studio at https://ai.studio/spend"}}], QuotaExhausted),  # noqa: E501
        # ai.google.dev/gemini-api/docs/api-errors: 499; nginx and AWS's load balancers have no body
        (499, {"error": {"code": 499, "status": "CANCELLED", "message": "The operation was cancelled."}}, TransientError),  # noqa: E501
        (499, "", TransientError),
        (460, "", TransientError),
        (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "You have reached your specified workspace API usage limits. You will regain access on 2026-11-01 at 00:00 UTC."}}, QuotaExhausted),  # noqa: E501
        # MoonshotAI/kimi-cli #2318; platform.minimax.io/docs/api-reference/errorcode
        (429, openai("request reached organization TPD rate limit, current: 1537190, limit: 1500000", None, "rate_limit_reached_error"), QuotaExhausted),  # noqa: E501
        (429, {"type": "error", "error": {"type": "rate_limit_error", "message": "usage limit exceeded (2056)"}}, QuotaExhausted),  # noqa: E501
        (None, {"base_resp": {"status_code": 2056, "status_msg": "usage limit exceeded"}}, QuotaExhausted),
        (None, {"base_resp": {"status_code": 2045, "status_msg": "rate growth limit"}}, RateLimited),
        (None, {"base_resp": {"status_code": 1041, "status_msg": "conn limit"}}, RateLimited),
        # watsonx: quarkiverse/quarkus-langchain4j maps these codes of `errors`
        (403, {"errors": [{"code": "token_quota_reached", "message": "Request of 1 token(s) from quota was rejected"}]}, QuotaExhausted),  # noqa: E501
        (404, {"errors": [{"code": "model_not_supported", "message": "Model 'm' is not supported"}]}, ModelNotFound),
        (400, {"errors": [{"code": "invalid_input_argument", "message": "the number of input tokens 9000 cannot exceed the total tokens limit 8192 for this model"}]}, ContextOverflow),  # noqa: E501
        # developers.cloudflare.com/workers-ai/platform/errors
        (429, {"success": False, "errors": [{"code": 3036, "message": "You have used up your daily free allocation of 10,000 neurons."}]}, QuotaExhausted),  # noqa: E501
        (400, {"success": False, "errors": [{"code": 5007, "message": "No such model @cf/x"}]}, ModelNotFound),
        # ollama.com, cloud models; GitHub Models' limit of a day; dashboard.cohere.com, a trial key
        (429, {"error": "you (name) have reached your weekly usage limit, upgrade for higher limits: https://ollama.com/upgrade"}, QuotaExhausted),  # noqa: E501
        (429, {"error": {"code": "RateLimitReached", "message": "Rate limit of 50 per 86400s exceeded for UserByModelByDay. Please wait 34128 seconds before retrying."}}, QuotaExhausted),  # noqa: E501
        (429, {"error": {"code": "RateLimitReached", "message": "Rate limit of 10 per 60s exceeded for UserByModelByMinute. Please wait 22 seconds before retrying."}}, RateLimited),  # noqa: E501
        (429, {"message": "You are using a Trial key, which is limited to 1000 API calls / month."}, QuotaExhausted),
        (429, {"message": "You are using a Trial key, which is limited to 20 API calls / minute."}, RateLimited),
        # learn.microsoft.com/azure/api-management: the policies quota and llm-token-limit
        (403, {"statusCode": 403, "message": "Out of call volume quota. Quota will be replenished in 01:23:45."}, QuotaExhausted),  # noqa: E501
        (403, {"statusCode": 403, "message": "Token quota is exceeded. Try again in 3600 seconds."}, QuotaExhausted),
        # console.groq.com/docs/spend-limits
        (400, openai("Organization has been blocked: spend limit reached", "blocked_api_access"), QuotaExhausted),
        (400, openai("The model `m` has been decommissioned and is no longer supported.", "model_decommissioned"), ModelNotFound),  # noqa: E501
        # help.aliyun.com/en/model-studio/error-code; Volcano Engine; One API's relay/controller/audio.go
        (403, openai("The free tier of the model has been exhausted.", "AllocationQuota.FreeTierOnly", "AllocationQuota.FreeTierOnly"), QuotaExhausted),  # noqa: E501
        (403, openai("The request failed because your account has an overdue balance.", "AccountOverdueError", "Forbidden"), QuotaExhausted),  # noqa: E501
        (403, openai("user quota is not enough", "insufficient_user_quota", "one_api_error"), QuotaExhausted),
        (403, {"code": 403, "reason": "NOT_ENOUGH_BALANCE", "message": "not enough balance"}, QuotaExhausted),
        (403, {"code": 30001, "message": "Sorry, your account balance is insufficient"}, QuotaExhausted),
        # the same in a body with status 200
        (None, {"error": {"message": "Insufficient Balance"}}, QuotaExhausted),
        # api-docs.deepseek.com; openrouter.ai; docs.mistral.ai; github.com/marketplace/models; SiliconFlow
        (400, openai("Model Not Exist"), ModelNotFound),
        (400, {"error": {"message": "foo/bar is not a valid model ID", "code": 400}}, ModelNotFound),
        (400, {"object": "error", "message": "Invalid model: m", "type": "invalid_model", "code": "1500"}, ModelNotFound),  # noqa: E501
        (400, {"error": {"code": "unknown_model", "message": "Unknown model: m"}}, ModelNotFound),
        (400, {"code": 20012, "message": "Model does not exist. Please check it carefully."}, ModelNotFound),
        (403, openai("Project `proj_x` does not have access to model `m`", "model_not_found"), ModelNotFound),
        # vllm/v1/engine/processor.py; TensorRT-LLM; TabbyAPI
        (400, openai("The decoder prompt (length 88049) is longer than the maximum model length of 32768.", None, "BadRequestError"), ContextOverflow),  # noqa: E501
        (400, openai("The prompt length 9000 exceeds max_input_len 8192"), ContextOverflow),
        # llama.cpp's server: a slot is full, or the prompt is longer than the physical batch
        (500, {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}}, ContextOverflow),  # noqa: E501
        (500, openai("The context size of the cache is wrong", None, "server_error"), TransientError),
        # LM Studio loads the model again with the next request
        (400, {"error": "Model has unloaded or crashed.."}, TransientError),
        # smithy.io/2.0/aws/protocols: the type of an error in the body
        (400, {"__type": "com.amazon.coral.service#ThrottlingException", "message": "Rate exceeded"}, RateLimited),
        # RFC 9110, section 15.6.2
        (501, {"error": {"message": "Not supported", "type": "not_supported_error"}}, InvalidRequest),
    ],
)  # fmt: skip
def test_each_error_has_its_class(status: int | None, body: Any, kind: type[RequestError]) -> None:
    error = of(status, body)
    assert type(error) is kind
    assert error.status == status


@pytest.mark.parametrize(
    ("body", "words"),
    [
        # developers.cloudflare.com/fundamentals/api/reference: errors are a list
        (
            {"success": False, "errors": [{"code": 5006, "message": "AiError: bad input"}], "result": None},
            "bad input",
        ),
        ({"code": 500, "msg": "404 NOT_FOUND", "success": False}, "404 NOT_FOUND"),
        ({"fault": {"faultstring": "quota policy"}}, "quota policy"),
        # NVIDIA NIM, RFC 9457; DeepInfra; KoboldCpp
        ({"type": "about:blank", "status": 400, "title": "Bad Request"}, "HTTP 400: Bad Request"),
        ({"detail": {"error": "enter a payment method"}}, "HTTP 400: enter a payment method"),
        ({"detail": {"msg": "Server is busy", "type": "service_unavailable"}}, "HTTP 400: Server is busy"),
        ({"errors": [{"code": 1, "message": "bad"}]}, "HTTP 400: bad"),
    ],
)
def test_no_server_s_words_are_lost(body: dict[str, Any], words: str) -> None:
    assert words in str(of(400, body))


def test_a_wait_in_the_message_counts_where_the_headers_are_silent() -> None:
    body = openai("Rate limit reached for gpt-4o. Please try again in 1m2.5s. Visit the page.", "rate_limit_exceeded")
    error = of(429, body)
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 62.5
    empty = of(429, openai("slow down"), {"ratelimit": '"api";r=0;t=55'})
    assert isinstance(empty, RateLimited)
    assert empty.retry_after_s == 55
    told = of(429, body, {"retry-after-ms": "20"})
    assert isinstance(told, RateLimited)
    assert told.retry_after_s == 0.02


@pytest.mark.parametrize(
    ("error", "wait_s"),
    [
        # PostHog/posthog #82310: a field of the body
        ({"message": "slow down", "retry_after": 30}, 30.0),
        ({"message": "slow down", "retry_after": 0.5}, 0.5),
        ({"message": "slow down", "retry_after": 1_800_000_000_000}, None),
        ({"message": "slow down", "retry_after": True}, None),
        ({"message": "slow down", "retry_after": float("nan")}, None),
        # GitHub Models; Django REST framework (rest_framework.exceptions.Throttled)
        ({"message": "Rate limit of 15 per 60s exceeded. Please wait 42 seconds before retrying."}, 42.0),
        ({"message": "Request was throttled. Expected available in 12 seconds."}, 12.0),
        # epam/statgpt-backend #199
        ({"message": "You've exceeded your weekly token limit. Please try again in 7 days"}, 604_800.0),
        ({"message": "Please try again in 1 minute."}, 60.0),
        ({"message": "Please retry after 1.5 hours"}, 5_400.0),
        ({"message": "Please try again in 5 minutest"}, None),
    ],
)
def test_the_waits_of_gateways_are_read(error: dict[str, Any], wait_s: float | None) -> None:
    found = of(429, {"error": error})
    assert isinstance(found, RateLimited)
    assert found.retry_after_s == wait_s


@pytest.mark.parametrize(
    ("status", "header", "kind", "is_retried"),
    [
        # openai._base_client.BaseClient._should_retry, and the same in anthropic
        (429, "false", RateLimited, False),
        (500, "false", TransientError, False),
        (529, "true", Overloaded, True),
        (400, "true", TransientError, True),
        (400, "false", InvalidRequest, False),
        (401, "true", AuthenticationFailed, False),
        (429, "maybe", RateLimited, True),
        (500, None, TransientError, True),
    ],
)
def test_a_server_that_says_whether_to_retry_is_obeyed(
    status: int, header: str | None, kind: type[RequestError], is_retried: bool
) -> None:
    error = of(status, openai("no"), {} if header is None else {"x-should-retry": header})
    assert type(error) is kind
    assert (Retry().delay_s(error, 1, 0.0) is not None) is is_retried
    assert may_have_been_billed(error) == (status == 500)


def test_the_reset_that_openrouter_states_in_the_body_is_a_wait() -> None:
    # Gitlawb/openclaude #936: a time in milliseconds
    headers = {
        "X-RateLimit-Limit": "20",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": f"{(time() + 40) * 1000:.0f}",
    }
    body = {
        "error": {
            "message": "Rate limit exceeded: free-models-per-min.",
            "code": 429,
            "metadata": {"headers": headers},
        }
    }
    error = of(429, body)
    assert type(error) is RateLimited
    assert error.retry_after_s is not None
    assert 30 < error.retry_after_s < 41


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-proj-abcd****************wxyz. Find it at https://platform.openai.com.",
        "key sk-ant-api03-abcdwxyz0123 refused",
        "Authorization: Bearer abcd-wxyz",
        "organization org-abcdwxyz0123",
        "proxy http://user:abcdwxyz@proxy.corp:3128 failed",
        "https://name.openai.azure.com/?api-key=abcdwxyz&x=1",
    ],
)
def test_what_looks_like_a_secret_is_not_shown(text: str) -> None:
    shown = one_line(text)
    assert "abcd" not in shown
    assert "wxyz" not in shown
    assert "***" in shown


def test_the_key_itself_is_not_shown_whatever_it_looks_like() -> None:
    assert one_line("token my odd key was refused", "my odd key") == "token *** was refused"


@given(st.text(), st.text(min_size=1))
def test_a_message_is_one_short_line(text: str, secret: str) -> None:
    line = one_line(text, secret)
    assert len(line) <= 300
    assert line.isprintable()


_KEYS = ["error", "errors", "message", "code", "type", "innererror", "detail", "details", "status", "metadata",
         "base_resp", "status_code", "raw", "headers", "retry_after", "title", "__type", "error_msg"]  # fmt: skip


@given(
    st.sampled_from([None, 200, 400, 401, 403, 404, 429, 499, 500, 501, 599]),
    st.recursive(
        st.none() | st.text() | st.integers() | st.booleans(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(_KEYS), inner),
    ),
)
def test_no_body_can_break_the_classification(status: int | None, body: Any) -> None:
    assert isinstance(of(status, body), RequestError)


@pytest.mark.parametrize(("status", "kind"), [(429, RateLimited), (503, Overloaded), (529, Overloaded)])
def test_a_refusal_keeps_the_quotas_that_its_headers_state(status: int, kind: type[RateLimited]) -> None:
    stated = {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "100ms",
    }
    error = of(status, openai("slow down"), stated)
    assert type(error) is kind
    assert error.rate_limits == RateLimits(limit_requests=600, remaining_requests=0, reset_requests_s=0.1)
    silent = of(status, openai("slow down"))
    assert isinstance(silent, RateLimited)
    assert silent.rate_limits == RateLimits()
