"""What the pages for raters say, in English and Chinese."""

from typing import Final

LANGUAGES: Final = {"en": "English", "zh": "中文"}

TEXTS: Final[dict[str, dict[str, str]]] = {
    "en": {
        "title": "Which picture is better?",
        "name": "Your name",
        "name_help": "Any name of at most 64 characters. It stands beside your votes.",
        "begin": "Begin",
        "welcome": "You will see pairs of pictures that were made for one text, and choose the better one of each pair.",
        "invited": "You are invited as {name}.",
        "prompt": "Text",
        "pictures": "The two pictures",
        "left_picture": "Left picture",
        "right_picture": "Right picture",
        "left": "Left",
        "right": "Right",
        "tie": "Equal",
        "bad": "Both bad",
        "overall": "Which is better overall?",
        "prompt_following": "Which follows the text better?",
        "looks": "Which looks better?",
        "zoom": "Zoom",
        "undo": "Undo",
        "key_help": "Keys: ← left, → right, ↑ equal, ↓ both bad, U undo the last vote, Z zoom.",
        "progress": "{done} of {total}",
        "pair": "Pair {number} of {total}",
        "loading": "Loading",
        "finished": "That was all. Thank you!",
        "finished_text": "Your votes are saved. You can close this page.",
        "lost": "You were away for long, and that pair was given to others. Here is another one.",
        "offline": "The server does not answer. Your vote will be sent again.",
        "session": "Your session has ended. Load the page again.",
        "again": "Try again",
        "language": "Language",
        "error_name": "Write a name of 1 to 64 characters.",
        "error_taken": "Another rater has this name: choose another one, or go on in the browser in which you began.",
        "error_invitation": "This link is not whole: open it again as it was sent to you, or ask for another one.",
        "error_expired": "This link has expired: ask whoever sent it for another one.",
        "error_key": "This study is open to invited raters only: open the link that was sent to you.",
        "error_many": "Too many requests: wait a minute, then load the page again.",
        "error_request": "This request does not come from the page: open the page again.",
        "error_missing": "There is nothing here: open the link that was sent to you.",
        "error_large": "This request is too large: open the page again.",
        "error_database": "The vote could not be saved: wait a moment, then load the page again.",
    },
    "zh": {
        "title": "哪张图片更好？",
        "name": "您的名字",
        "name_help": "任意名字，最多 64 个字符。它会与您的投票一起保存。",
        "begin": "开始",
        "welcome": "您会看到由同一段文字生成的成对图片，请在每一对中选出更好的一张。",
        "invited": "您以 {name} 的名义受邀。",
        "prompt": "文字",
        "pictures": "两张图片",
        "left_picture": "左边的图片",
        "right_picture": "右边的图片",
        "left": "左边",
        "right": "右边",
        "tie": "一样好",
        "bad": "都不好",
        "overall": "总体上哪一张更好？",
        "prompt_following": "哪一张更符合文字？",
        "looks": "哪一张更好看？",
        "zoom": "放大",
        "undo": "撤回",
        "key_help": "按键：← 左边，→ 右边，↑ 一样好，↓ 都不好，U 撤回上一次投票，Z 放大。",
        "progress": "{done} / {total}",
        "pair": "第 {number} 对，共 {total} 对",
        "loading": "正在加载",
        "finished": "全部完成，谢谢！",
        "finished_text": "您的投票已保存，可以关闭此页面。",
        "lost": "您离开太久，那一对图片已交给其他人。这是另一对。",
        "offline": "服务器没有回应。您的投票会重新发送。",
        "session": "会话已结束，请重新加载页面。",
        "again": "重试",
        "language": "语言",
        "error_name": "请输入 1 到 64 个字符的名字。",
        "error_taken": "已有人使用这个名字：请换一个，或在您开始时使用的浏览器中继续。",
        "error_invitation": "链接不完整：请按收到的原样重新打开，或索取新的链接。",
        "error_expired": "链接已过期：请向发送者索取新的链接。",
        "error_key": "本研究只对受邀者开放：请打开发给您的链接。",
        "error_many": "请求过多：请等一分钟，再重新加载页面。",
        "error_request": "此请求不是来自本页面：请重新打开页面。",
        "error_missing": "这里没有内容：请打开发给您的链接。",
        "error_large": "请求过大：请重新打开页面。",
        "error_database": "投票未能保存：请稍等，再重新加载页面。",
    },
}

QUESTIONS: Final = ("prompt_following", "looks")  # that may be asked beside the overall one


def language_of(chosen: str | None, accepted: str) -> str:
    """Return the language that a rater chose, or the first known one of the header Accept-Language.

    >>> language_of(None, "fr;q=0.9, zh-CN;q=0.8, en;q=0.5"), language_of("en", "zh"), language_of(None, "")
    ('zh', 'en', 'en')
    """
    if chosen in LANGUAGES:
        return str(chosen)
    wishes: list[tuple[float, str]] = []
    for item in accepted[:500].split(","):
        name, _, quality = item.partition(";q=")
        try:
            wishes.append((-float(quality or 1), name.strip().lower()[:2]))
        except ValueError:
            continue
    return next((name for weight, name in sorted(wishes, key=lambda wish: wish[0]) if name in LANGUAGES and weight), "en")
